// Small helpers for building pages out of DOM nodes. Nothing here ever parses HTML.

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  send: "M10 16V4.5M4.5 10 10 4.5l5.5 5.5",
  stop: "M6 6h8v8H6z",
  down: "M10 4v11.5M4.5 10 10 15.5l5.5-5.5",
};

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Makes an HTML element. `onclick` and the like are listeners; null attributes and children are left out. */
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Makes an SVG element in the same way. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** A line icon; the button around it carries the name. */
export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 20 20", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));
}

/** The element with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Says something through the page's polite live region. */
export function announce(text) {
  const region = byId("announcer");
  if (region) region.textContent = text;
}

/** Copies text, also where the page came over plain HTTP and the clipboard interface is missing. */
export async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const focused = document.activeElement;
  const holder = element("textarea", { class: "visually-hidden", "aria-hidden": "true", tabindex: "-1" });
  holder.value = text;
  document.body.append(holder);
  holder.select();
  const copied = document.execCommand("copy");
  holder.remove();
  focused?.focus();
  if (!copied) throw new Error("The browser refused to copy.");
}

/** A button that copies what `read()` returns at that moment, and says so. */
export function copyButton(read, label = "Copy") {
  const button = element("button", { type: "button", class: "quiet copy" }, label);
  button.addEventListener("click", async () => {
    const outcome = await copyText(read()).then(() => "Copied", () => "Not copied");
    button.textContent = outcome;
    announce(outcome);
    setTimeout(() => { button.textContent = label; }, 1600);
  });
  return button;
}

/** Reads a JSON value from localStorage; `fallback` where there is none or storage is switched off. */
export function recall(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Writes a JSON value to localStorage; false where that failed. */
export function remember(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

const KEY = "asurge.key";

/** The API key of this tab: it lives in sessionStorage and goes when the tab closes. */
export const apiKey = {
  get() {
    try {
      return sessionStorage.getItem(KEY) ?? "";
    } catch {
      return "";
    }
  },
  set(value) {
    try {
      if (value) sessionStorage.setItem(KEY, value);
      else sessionStorage.removeItem(KEY);
    } catch {
      // Without storage the key lives in its field only, and requests go without it.
    }
  },
  headers() {
    const key = apiKey.get();
    return key ? { Authorization: `Bearer ${key}` } : {};
  },
};

/** 0.0123 as "12 ms", 2.5 as "2.50 s". */
export function formatSeconds(value) {
  if (value < 0.01) return `${(value * 1000).toFixed(1)} ms`;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return value < 100 ? `${value.toFixed(value < 10 ? 2 : 1)} s` : `${Math.round(value).toLocaleString("en")} s`;
}

/** 1234 as "1,234", 45678 as "45.7k"; small numbers keep a decimal. */
export function formatNumber(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return `${(value / 1e9).toFixed(1)}G`;
  if (size >= 1e6) return `${(value / 1e6).toFixed(1)}M`;
  if (size >= 1e4) return `${(value / 1e3).toFixed(1)}k`;
  if (size >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en");
  return value.toFixed(size < 1 ? 2 : 1);
}
