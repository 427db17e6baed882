// Renders the Markdown that models write. Text only ever becomes text nodes: no HTML is parsed, links are http(s).

import { copyButton, element } from "./dom.js";
import { inlineNodes } from "./inline.js";

const DEEPEST = 8;
const FENCE = /^( {0,3})(`{3,}|~{3,})(.*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}>[ \t]?/;
const INTERRUPT = /^ {0,3}(?:[-*+]|1[.)])[ \t]+\S/; // a line "1984." within a paragraph starts no list
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:[ \t]+|$)/;

const rendered = new WeakMap();

/**
 * Shows `text` in `container`. Called again with more text it keeps the blocks that did not change, so that a
 * growing answer costs its last block and a reader's selection above it stays.
 */
export function renderMarkdown(container, text) {
  const blocks = parseBlocks(text.replace(/\r\n?/g, "\n").split("\n"));
  const old = rendered.get(container) ?? [];
  let same = 0;
  while (same < old.length && same < blocks.length && old[same].source === blocks[same].source) same += 1;
  for (const block of old.slice(same)) block.node.remove();
  const fresh = blocks.slice(same).map((block) => ({ source: block.source, node: build(block, 0) }));
  container.append(...fresh.map((block) => block.node));
  rendered.set(container, [...old.slice(0, same), ...fresh]);
}

/** Cuts lines into blocks: {kind, lines, source, ...}. */
function parseBlocks(lines) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = takeFence(lines, at) ?? takeLine(lines, at) ?? takeQuote(lines, at) ?? takeTable(lines, at)
      ?? takeList(lines, at) ?? takeParagraph(lines, at);
    block.source = `${block.kind}\n${lines.slice(at, block.end).join("\n")}`;
    blocks.push(block);
    at = block.end;
  }
  return blocks;
}

function takeFence(lines, start) {
  const [, indent, fence, info] = FENCE.exec(lines[start]) ?? [];
  if (!fence || (fence[0] === "`" && info.includes("`"))) return null;
  const body = [];
  let end = start + 1;
  for (; end < lines.length; end += 1) {
    const line = lines[end].trim();
    if (line.length >= fence.length && line === fence[0].repeat(line.length)) {
      return { kind: "code", body, language: info.trim().split(/\s/)[0], end: end + 1 };
    }
    body.push(dedent(lines[end], indent.length));
  }
  return { kind: "code", body, language: info.trim().split(/\s/)[0], end };
}

/** Headings and rules are one line each. */
function takeLine(lines, start) {
  if (RULE.test(lines[start])) return { kind: "rule", end: start + 1 };
  const heading = HEADING.exec(lines[start]);
  if (!heading) return null;
  let text = (heading[2] ?? "").trim();
  const words = text.split(" ");
  if (/^#+$/.test(words.at(-1))) text = words.slice(0, -1).join(" ");
  return { kind: "heading", level: heading[1].length, text, end: start + 1 };
}

function takeQuote(lines, start) {
  if (!QUOTE.test(lines[start])) return null;
  let end = start;
  const inner = [];
  while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || !startsBlock(lines, end))) {
    inner.push(lines[end].replace(QUOTE, ""));
    end += 1;
  }
  return { kind: "quote", inner, end };
}

function takeTable(lines, start) {
  if (!lines[start].includes("|") || start + 1 >= lines.length || !lines[start + 1].includes("-")) return null;
  const head = cells(lines[start]);
  const marks = cells(lines[start + 1]);
  if (head.length !== marks.length || !marks.every((mark) => /^:?-+:?$/.test(mark))) return null;
  const rows = [];
  let end = start + 2;
  for (; end < lines.length && lines[end].includes("|") && lines[end].trim(); end += 1) rows.push(cells(lines[end]));
  const sides = marks.map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "end") : "start"));
  return { kind: "table", head, rows, sides, end };
}

/** The cells of a table row. A pipe after a backslash is text. */
function cells(line) {
  const found = [""];
  for (const [part] of line.trim().matchAll(/\\\||\||[^\\|]+|\\/g)) {
    if (part === "|") found.push("");
    else found[found.length - 1] += part === "\\|" ? "|" : part;
  }
  if (!found[0].trim()) found.shift();
  if (found.length > 1 && !found.at(-1).trim()) found.pop();
  return found.map((cell) => cell.trim());
}

function takeList(lines, start) {
  const first = ITEM.exec(lines[start]);
  if (!first) return null;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let end = start;
  let loose = false;
  while (end < lines.length) {
    const mark = ITEM.exec(lines[end]);
    if (!mark || RULE.test(lines[end]) || mark[2].at(-1) !== first[2].at(-1)) break;
    const item = takeItem(lines, end, mark);
    items.push(item.inner);
    loose ||= item.blank && item.end < lines.length && ITEM.test(lines[item.end]);
    end = item.end;
  }
  while (end > start + 1 && !lines[end - 1].trim()) end -= 1;
  return { kind: "list", ordered, first: Number.parseInt(first[2], 10), items, loose, end };
}

/** Takes a list item: the lines indented under its mark, lazy lines of its paragraph, and blank lines between. */
function takeItem(lines, start, mark) {
  const width = mark[1].length + mark[2].length + 1;
  const inner = [lines[start].slice(mark[0].length)];
  let blank = false;
  let end = start + 1;
  for (; end < lines.length; end += 1) {
    const indent = lines[end].length - lines[end].trimStart().length;
    if (!lines[end].trim()) blank = true;
    else if (indent < Math.min(width, mark[1].length + 2) && (blank || endsItem(lines, end))) break;
    else blank = false;
    inner.push(dedent(lines[end], width));
  }
  return { inner, blank, end };
}

function takeParagraph(lines, start) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines, end)) end += 1;
  return { kind: "paragraph", text: lines.slice(start, end).map((line) => line.trim()).join("\n"), end };
}

function startsBlock(lines, at) {
  return FENCE.test(lines[at]) || HEADING.test(lines[at]) || RULE.test(lines[at]) || QUOTE.test(lines[at])
    || INTERRUPT.test(lines[at]) || takeTable(lines, at) !== null;
}

function endsItem(lines, at) {
  return ITEM.test(lines[at]) || startsBlock(lines, at);
}

function dedent(line, width) {
  let cut = 0;
  while (cut < width && (line[cut] === " " || line[cut] === "\t")) cut += 1;
  return line.slice(cut);
}

function build(block, depth) {
  switch (block.kind) {
    case "code": return buildCode(block);
    case "rule": return element("hr");
    case "heading": return element(`h${Math.min(block.level + 2, 6)}`, {}, ...inlineNodes(block.text));
    case "quote": return element("blockquote", {}, ...buildInner(block.inner, depth));
    case "table": return buildTable(block);
    case "list": return buildList(block, depth);
    default: return element("p", {}, ...inlineNodes(block.text));
  }
}

/** Builds the content of a quote or an item. Too deep nesting, as a hostile text may have it, becomes plain text. */
function buildInner(lines, depth) {
  if (depth >= DEEPEST) return [element("p", {}, lines.join("\n"))];
  return parseBlocks(lines).map((block) => build(block, depth + 1));
}

function buildCode(block) {
  const text = block.body.join("\n");
  const name = block.language || "text";
  return element("figure", { class: "code" },
    element("figcaption", {}, element("span", {}, name), copyButton(() => text)),
    element("pre", { tabindex: "0", "aria-label": `Code, ${name}`, role: "group" }, element("code", {}, text)));
}

function buildTable({ head, rows, sides }) {
  const row = (values, name, scope) => element("tr", {}, ...head.map((_, index) => (
    element(name, { class: `to-${sides[index]}`, scope }, ...inlineNodes(values[index] ?? "")))));
  return element("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" },
    element("table", {},
      element("thead", {}, row(head, "th", "col")),
      element("tbody", {}, ...rows.map((values) => row(values, "td", null)))));
}

function buildList(block, depth) {
  const items = block.items.map((lines) => {
    const nodes = buildInner(lines, depth);
    if (block.loose || nodes[0]?.tagName !== "P") return element("li", {}, ...nodes);
    return element("li", {}, ...nodes[0].childNodes, ...nodes.slice(1));
  });
  const start = block.ordered && block.first !== 1 ? block.first : null;
  return element(block.ordered ? "ol" : "ul", { start }, ...items);
}
