// Markdown inside a line: emphasis, code, links, line breaks. One pass from left to right, without backtracking.

import { element } from "./dom.js";

const LINK = /!?\[((?:[^[\]\\\n]|\\.)*)\]\([ \t]*<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?:[ \t]+["'][^"'\n]*["'])?[ \t]*\)/y;
const ANGLE = /<(https?:\/\/[^\s<>]+)>/y;
const BARE = /https?:\/\/[^\s<>"`]+/y;
const ENTITY = /&(amp|lt|gt|quot|nbsp|#39);/y;
const PLAIN = /[^\\`*_~[!<&h\n]+/y;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', nbsp: "\u00a0", "#39": "'" };
const DEEPEST = 64;
const WORD = /[\p{L}\p{N}]/u;
const ESCAPABLE = /[!-/:-@[-`{-~]/;

/** The nodes for a line or a paragraph of Markdown. */
export function inlineNodes(text) {
  return nest(tokens(text));
}

/** An http(s) address as the browser understands it, or null. */
export function safeAddress(text) {
  try {
    const address = new URL(text);
    return address.protocol === "http:" || address.protocol === "https:" ? address.href : null;
  } catch {
    return null;
  }
}

function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/** Strings, nodes, and runs of emphasis marks {mark, count, opens, closes}. */
function tokens(text) {
  const found = [];
  const unclosed = new Set();
  let at = 0;
  while (at < text.length) {
    const [token, size] = tokenAt(text, at, unclosed);
    found.push(token);
    at += size;
  }
  return found;
}

function tokenAt(text, at, unclosed) {
  switch (text[at]) {
    case "\n": return [element("br"), 1];
    case "\\": return escapeAt(text, at);
    case "`": return codeAt(text, at, unclosed);
    case "*": case "_": case "~": return marksAt(text, at);
    case "[": case "!": return linkAt(text, at);
    case "<": return angleAt(text, at);
    case "&": return entityAt(text, at);
    case "h": return bareAt(text, at);
    default: {
      const plain = match(PLAIN, text, at)[0];
      return [plain, plain.length];
    }
  }
}

function escapeAt(text, at) {
  const next = text[at + 1];
  if (next === "\n") return [element("br"), 2];
  return next && ESCAPABLE.test(next) ? [next, 2] : ["\\", 1];
}

/** Code between runs of equally many backticks. `unclosed` holds the run lengths known to have no end. */
function codeAt(text, at, unclosed) {
  const run = match(/`+/y, text, at)[0];
  if (!unclosed.has(run.length)) {
    const closing = /`+/g;
    closing.lastIndex = at + run.length;
    for (let end = closing.exec(text); end; end = closing.exec(text)) {
      if (end[0].length !== run.length) continue;
      let code = text.slice(at + run.length, end.index).replaceAll("\n", " ");
      if (code.startsWith(" ") && code.endsWith(" ") && code.trim()) code = code.slice(1, -1);
      return [element("code", {}, code), closing.lastIndex - at];
    }
    unclosed.add(run.length);
  }
  return [run, run.length];
}

function marksAt(text, at) {
  const mark = text[at];
  let end = at;
  while (text[end] === mark) end += 1;
  const count = end - at;
  if (count > 3 || (mark === "~" && count !== 2)) return [text.slice(at, end), count];
  const before = text[at - 1] ?? " ";
  const after = text[end] ?? " ";
  let opens = !/\s/.test(after);
  let closes = !/\s/.test(before);
  if (mark === "_") {
    opens &&= !WORD.test(before);
    closes &&= !WORD.test(after);
  }
  return [{ mark, count, opens, closes }, count];
}

/** `[text](address)`. Images become links too: the page loads nothing from elsewhere. */
function linkAt(text, at) {
  const found = match(LINK, text, at);
  if (!found) return [text[at], 1];
  const address = safeAddress(found[2]);
  if (!address) return [found[0], found[0].length];
  const link = anchor(address, found[1].trim() ? inlineNodes(found[1]) : [found[2]]);
  for (const inner of link.querySelectorAll("a")) inner.replaceWith(inner.textContent);
  return [link, found[0].length];
}

function angleAt(text, at) {
  const found = match(ANGLE, text, at);
  const address = found && safeAddress(found[1]);
  return address ? [anchor(address, [found[1]]), found[0].length] : ["<", 1];
}

function entityAt(text, at) {
  const found = match(ENTITY, text, at);
  return found ? [ENTITIES[found[1]], found[0].length] : ["&", 1];
}

/** An address in the text. Punctuation at its end belongs to the sentence, and so does a bracket it did not open. */
function bareAt(text, at) {
  const found = WORD.test(text[at - 1] ?? " ") ? null : match(BARE, text, at);
  if (!found) return ["h", 1];
  let source = found[0];
  while (/[.,;:!?*_~'\])]$/.test(source)) {
    if (source.endsWith(")") && source.split("(").length >= source.split(")").length) break;
    source = source.slice(0, -1);
  }
  const address = safeAddress(source);
  return address ? [anchor(address, [source]), source.length] : ["h", 1];
}

function anchor(address, children) {
  return element("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

const WRAPPERS = { 1: "em", 2: "strong" };

/** Pairs emphasis marks. A mark without a partner is text. */
function nest(list) {
  const root = { children: [] };
  const open = [];
  const top = () => open.at(-1) ?? root;
  for (const token of list) {
    if (typeof token === "string" || token instanceof Node) {
      top().children.push(token);
      continue;
    }
    let { count } = token;
    while (token.closes && count > 0) {
      const size = closeMark(open, root, token.mark, count);
      if (!size) break;
      count -= size;
    }
    if (!token.opens || open.length > DEEPEST) {
      top().children.push(token.mark.repeat(count));
      continue;
    }
    if (count >= 2) open.push({ mark: token.mark, size: 2, children: [] });
    if (count % 2) open.push({ mark: token.mark, size: 1, children: [] });
  }
  while (open.length) unopen(open, root);
  return root.children;
}

/** Closes the nearest fitting open mark, at most `count` long; returns how many characters that took. */
function closeMark(open, root, mark, count) {
  const index = open.findLastIndex((entry) => entry.mark === mark && entry.size <= count);
  if (index < 0) return 0;
  while (open.length > index + 1) unopen(open, root);
  const { size, children } = open.pop();
  (open.at(-1) ?? root).children.push(element(mark === "~" ? "del" : WRAPPERS[size], {}, ...children));
  return size;
}

/** Turns the innermost open mark back into text. */
function unopen(open, root) {
  const { mark, size, children } = open.pop();
  const outer = (open.at(-1) ?? root).children;
  outer.push(mark.repeat(size));
  for (const child of children) outer.push(child);
}
