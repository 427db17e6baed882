// The views of the conversation: one list item per message, updated in place while an answer grows.

import { announce, copyButton, element, formatSeconds } from "./dom.js";
import { renderMarkdown } from "./markdown.js";

/** A user's message. `actions.edit(message, text)` gets the new text, `following(message)` counts what comes after. */
export function userView(message, actions) {
  const text = element("div", { class: "bubble" });
  const body = element("div", { class: "body" }, text);
  const edit = element("button", { type: "button", class: "quiet when-idle" }, "Edit");
  const article = element("article", { "aria-label": "You" },
    element("h2", { class: "visually-hidden" }, "You"), body,
    element("div", { class: "foot" }, element("div", { class: "actions" }, edit)));
  text.textContent = message.content;
  edit.addEventListener("click", () => openEditor(article, message, actions, edit));
  return { node: element("li", { class: "message user" }, article), update() {} };
}

function openEditor(article, message, actions, edit) {
  const field = element("textarea", { rows: "3", "aria-label": "Edit your message" });
  const send = element("button", { type: "submit", class: "primary" }, "Send");
  const cancel = element("button", { type: "button", class: "plain" }, "Cancel");
  const note = actions.following(message) < 2 ? "This replaces the answer." : "This replaces everything after it.";
  const form = element("form", { class: "editor" }, field, element("p", { class: "hint" }, note),
    element("div", { class: "buttons" }, cancel, send));
  const close = () => {
    form.remove();
    article.classList.remove("editing");
    edit.focus();
  };
  field.value = message.content;
  cancel.addEventListener("click", close);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (field.value.trim()) actions.edit(message, field.value);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    submitOnEnter(event);
  });
  article.classList.add("editing");
  article.append(form);
  field.focus();
}

/** Enter sends the form around a field; Shift+Enter, and Enter that ends a composition, stay with the field. */
export function submitOnEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  event.target.form.requestSubmit();
}

/** A model's answer. `actions`: regenerate(message), sendResults(message, texts), isLast(message), askForKey(). */
export function answerView(message, actions) {
  const parts = {
    thoughts: reasoningView(),
    waiting: element("p", { class: "waiting" }, element("span", { class: "dot", "aria-hidden": "true" }), "Waiting"),
    answer: element("div", { class: "markdown" }),
    tools: toolsView(message, actions),
    problem: element("div", { class: "problem", hidden: true }),
    figures: element("p", { class: "figures" }),
    buttons: element("div", { class: "actions when-idle" }),
  };
  const name = message.model || "Answer";
  const article = element("article", { "aria-label": name },
    element("h2", { class: "who" }, name), parts.thoughts.node, parts.waiting, parts.answer, parts.tools.node,
    parts.problem, element("div", { class: "foot" }, parts.figures, parts.buttons));
  parts.copy = copyButton(() => message.content);
  parts.again = element("button", { type: "button", class: "quiet", onclick: () => actions.regenerate(message) },
    "Regenerate");
  parts.buttons.append(parts.copy, parts.again);
  const update = () => updateAnswer(article, parts, message, actions);
  update();
  return { node: element("li", { class: "message assistant" }, article), update };
}

function updateAnswer(article, parts, message, actions) {
  const streaming = message.state === "streaming";
  article.setAttribute("aria-busy", String(streaming));
  parts.thoughts.update(message);
  const silent = !message.content && !message.reasoning && !message.tools.length;
  parts.waiting.hidden = !streaming || !silent;
  parts.answer.hidden = !message.content;
  renderMarkdown(parts.answer, message.content);
  parts.tools.update();
  parts.figures.textContent = streaming ? (silent ? "" : "Answering…") : message.figures;
  parts.copy.hidden = !message.content;
  parts.again.hidden = message.state === "failed" || !actions.isLast(message);
  if (message.state === "failed" && parts.problem.hidden) showProblem(parts.problem, message, actions);
  for (const retry of parts.problem.querySelectorAll(".retry")) retry.hidden = !actions.isLast(message);
}

/** The model's reasoning, closed until the reader opens it. */
function reasoningView() {
  const summary = element("summary", {}, "Reasoning");
  const body = element("div", { class: "markdown" });
  const node = element("details", { class: "reasoning", hidden: true }, summary, body);
  let latest = "";
  node.addEventListener("toggle", () => renderMarkdown(body, latest));
  const update = (message) => {
    latest = message.reasoning;
    node.hidden = !latest;
    const thinking = message.state === "streaming" && !message.content && !message.tools.length;
    const time = message.thinkingTime;
    summary.textContent = thinking ? "Thinking…" : `Reasoning${time ? ` · ${formatSeconds(time)}` : ""}`;
    if (node.open) renderMarkdown(body, latest);
  };
  return { node, update };
}

/** The calls a model made: a card each, with a field for the result once the arguments are complete. */
function toolsView(message, actions) {
  const cards = [];
  const list = element("div", { class: "cards" });
  const send = element("button", { type: "submit", class: "primary when-idle", hidden: true }, "Send results");
  const node = element("form", { class: "tools", hidden: true }, list, element("div", { class: "buttons" }, send));
  node.addEventListener("submit", (event) => {
    event.preventDefault();
    actions.sendResults(message, cards.map((card) => card.result()));
  });
  const update = () => {
    node.hidden = !message.tools.length;
    while (cards.length < message.tools.length) cards.push(toolCard());
    list.append(...cards.slice(list.childElementCount).map((card) => card.node));
    const answerable = message.state === "done" && actions.isLast(message);
    message.tools.forEach((tool, index) => cards[index].update(tool, answerable));
    send.hidden = !answerable || message.tools.some((tool) => tool.result !== null);
  };
  return { node, update };
}

function toolCard() {
  const name = element("span", { class: "name" });
  const code = element("code");
  const field = element("textarea", { rows: "2", placeholder: "What the tool returned" });
  const input = element("label", { hidden: true }, "Result", field);
  const answered = element("code");
  const given = element("div", { hidden: true }, element("p", { class: "hint" }, "Result"),
    element("pre", { tabindex: "0", role: "group", "aria-label": "Result" }, answered));
  const node = element("div", { class: "tool", role: "group" }, element("h3", {}, "Tool call ", name),
    element("pre", { tabindex: "0", role: "group", "aria-label": "Arguments" }, code), input, given);
  const update = (tool, answerable) => {
    name.textContent = tool.name;
    node.setAttribute("aria-label", `Tool call ${tool.name}`);
    code.textContent = pretty(tool.arguments);
    input.hidden = !answerable || tool.result !== null;
    given.hidden = tool.result === null;
    answered.textContent = tool.result ?? "";
  };
  return { node, update, result: () => field.value };
}

/** Arguments that are complete JSON, indented; others as they are. */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function showProblem(box, message, actions) {
  const { message: text, status } = message.error;
  const retry = element("button", { type: "button", class: "plain when-idle retry" }, "Try again");
  retry.addEventListener("click", () => actions.regenerate(message));
  const buttons = element("div", { class: "buttons" }, retry);
  if (status === 401 || status === 403) {
    const key = element("button", { type: "button", class: "plain", onclick: actions.askForKey }, "Enter an API key");
    buttons.prepend(key);
  }
  box.replaceChildren(element("p", {}, element("strong", {}, "No complete answer. "), text), buttons);
  box.hidden = false;
}

/** Announces to screen readers how an answer ended, once. */
export function announceAnswer(message) {
  const name = message.model || "The model";
  if (message.state === "failed") announce(`The answer failed: ${message.error.message}`);
  else if (message.state === "stopped") announce("The answer was stopped.");
  else if (message.content) announce(`${name} answered: ${message.content.slice(0, 2000)}`);
  else if (message.tools.length) announce(`${name} calls ${message.tools.map((tool) => tool.name).join(", ")}.`);
  else announce(`${name} gave an empty answer.`);
}
