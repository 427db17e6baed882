// The chat page: holds the conversation, sends it, and shows what comes back.

import { addChunk, endAnswer, newAnswer, requestMessages } from "./answer.js";
import { announce, byId, element, icon, recall, remember } from "./dom.js";
import { followEnd } from "./scrolling.js";
import * as settings from "./settings.js";
import { listModels, streamChat } from "./stream.js";
import { announceAnswer, answerView, submitOnEnter, userView } from "./thread.js";

const STORE = "asurge.conversation";
const STARTERS = [
  "What does os.path.join do?",
  "Explain continuous batching in three sentences.",
  "Write a Python function that merges two sorted lists.",
];

const composer = byId("composer");
const prompt = byId("prompt");
const thread = byId("thread");
const notice = byId("notice");
const toEnd = followEnd(byId("scroller"), byId("content"), byId("to-end"));

let messages = [];
const views = new Map();
let running = null; // the AbortController of the answer that is being written

const actions = {
  following: (message) => messages.length - 1 - messages.indexOf(message),
  isLast: (message) => messages.at(-1) === message,
  askForKey: settings.askForKey,
  edit(message, text) {
    if (!ready()) return;
    cutAt(message);
    prompt.focus();
    send(text);
  },
  regenerate(message) {
    if (!ready()) return;
    cutAt(message);
    prompt.focus();
    complete();
  },
  sendResults(message, results) {
    if (!ready()) return;
    message.tools.forEach((tool, index) => { tool.result = results[index]; });
    prompt.focus();
    complete();
  },
};

function ready() {
  return !running && settings.settingsAreValid();
}

function add(message) {
  messages.push(message);
  const view = message.role === "user" ? userView(message, actions) : answerView(message, actions);
  views.set(message, view);
  thread.append(view.node);
  showState();
}

/** Takes a message, and all that follow, out of the conversation. */
function cutAt(message) {
  for (const dropped of messages.splice(messages.indexOf(message))) {
    views.get(dropped).node.remove();
    views.delete(dropped);
  }
  showState();
}

function showState() {
  byId("welcome").hidden = messages.length > 0;
  byId("clear").disabled = !messages.length;
  byId("send").hidden = Boolean(running);
  byId("stop").hidden = !running;
  thread.classList.toggle("busy", Boolean(running));
  for (const view of views.values()) view.update();
}

function send(text) {
  if (!text.trim() || !ready()) return false;
  add({ role: "user", content: text.trim() });
  complete();
  return true;
}

/** Requests a completion of the conversation as it stands. */
async function complete() {
  say();
  const answer = newAnswer(settings.chosenModel());
  const { signal } = running = new AbortController();
  add(answer);
  toEnd();
  try {
    await receive(answer, signal);
    endAnswer(answer, "done");
  } catch (error) {
    if (signal.aborted) endAnswer(answer, "stopped");
    else endAnswer(answer, "failed", error);
  }
  running = null;
  showState();
  announceAnswer(answer);
  save();
}

async function receive(answer, signal) {
  if (!settings.chosenModel()) await loadModels();
  const body = {
    ...settings.parameters(),
    messages: requestMessages(messages, settings.systemMessage()),
    stream: true,
    stream_options: { include_usage: true },
  };
  let frame = 0;
  const draw = () => {
    frame = 0;
    views.get(answer)?.update();
  };
  try {
    for await (const chunk of streamChat(body, signal)) {
      addChunk(answer, chunk);
      frame ||= requestAnimationFrame(draw);
    }
  } finally {
    cancelAnimationFrame(frame);
  }
}

function save() {
  const kept = messages.map(({ times, deltas, ...message }) => message);
  if (!remember(STORE, kept)) say("This conversation is too long to be kept in the browser.");
}

function restore() {
  for (const message of recall(STORE, [])) {
    if (message.state === "streaming") Object.assign(message, { state: "stopped", figures: "Interrupted" });
    add(message);
  }
}

/** Shows a line above the message field, with a button where there is something to do about it. */
function say(text = "", label = null, act = null) {
  const run = () => {
    say();
    act();
  };
  const button = label && element("button", { type: "button", class: "plain", onclick: run }, label);
  notice.replaceChildren(element("span", {}, text), ...(button ? [button] : []));
  notice.hidden = !text;
}

/** Empties the conversation; until the next message it can be brought back. */
function clear() {
  running?.abort();
  const old = messages;
  messages = [];
  views.clear();
  thread.replaceChildren();
  showState();
  save();
  prompt.focus();
  say("Conversation cleared.", "Undo", () => {
    old.forEach(add);
    save();
    prompt.focus();
  });
  announce("Conversation cleared.");
}

async function loadModels() {
  try {
    const names = await listModels();
    settings.showModels(names);
    if (names.length) say();
    else say("The server offers no model.", "Try again", loadModels);
  } catch (error) {
    settings.showModels([]);
    const denied = error.status === 401 || error.status === 403;
    if (denied) say("The server wants an API key.", "Enter it", settings.askForKey);
    else say(error.message, "Try again", loadModels);
  }
  showModel();
}

function showModel() {
  byId("asked-model").textContent = settings.chosenModel() || "no model";
}

/** Lets the field grow with its text where CSS cannot. */
function fitPrompt() {
  if (CSS.supports("field-sizing", "content")) return;
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function listen() {
  composer.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!send(prompt.value)) return;
    prompt.value = "";
    fitPrompt();
    prompt.focus();
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Escape") running?.abort();
    submitOnEnter(event);
  });
  prompt.addEventListener("input", fitPrompt);
  byId("stop").addEventListener("click", () => {
    running?.abort();
    prompt.focus();
  });
  byId("clear").addEventListener("click", clear);
  window.addEventListener("pagehide", () => {
    if (!running) return;
    running.abort(); // so that the answer counts as stopped, and not as failed
    save();
  });
}

function start() {
  byId("send").append(icon("send"));
  byId("stop").append(icon("stop"));
  byId("to-end").prepend(icon("down"));
  byId("starters").append(...STARTERS.map((text) => element("li", {},
    element("button", { type: "button", class: "starter", onclick: () => send(text) && prompt.focus() }, text))));
  settings.startSettings((name) => {
    if (name === "key") loadModels();
    if (name === "model") showModel();
  });
  listen();
  restore();
  showState();
  toEnd();
  prompt.focus();
  loadModels();
}

start();
