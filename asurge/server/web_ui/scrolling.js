// Keeps the end of the conversation in view while it grows, until the reader scrolls away from it.

const NEAR = 48;

/** Follows the growth of `content` inside `scroller`; `button` leads a reader who left back to the end. */
export function followEnd(scroller, content, button) {
  let following = true;
  let lastTop = 0;
  const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
  const show = () => { button.hidden = following || atEnd(); };
  const toEnd = () => {
    following = true;
    scroller.scrollTop = scroller.scrollHeight;
    show();
  };
  scroller.addEventListener("scroll", () => {
    if (atEnd()) following = true;
    else if (scroller.scrollTop < lastTop) following = false;
    lastTop = scroller.scrollTop;
    show();
  }, { passive: true });
  const observer = new ResizeObserver(() => (following ? toEnd() : show()));
  observer.observe(content);
  observer.observe(scroller);
  button.addEventListener("click", toEnd);
  return toEnd;
}
