// The settings panel: beside the conversation where there is room, over it on a phone.

import { apiKey, byId, recall, remember } from "./dom.js";

const STORE = "asurge.settings";
const KEPT = ["model", "system", "temperature", "top_p", "max_tokens", "seed", "tools"];
const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];
const wide = matchMedia("(min-width: 64rem)");

const form = byId("settings-form");
const panel = byId("settings");
const opener = byId("open-settings");
const field = (name) => form.elements.namedItem(name);

/** Fills the fields with what was kept, and calls `changed(name)` after every change. */
export function startSettings(changed) {
  const kept = recall(STORE, {});
  for (const name of KEPT.slice(1)) field(name).value = kept[name] ?? "";
  field("key").value = apiKey.get();
  form.addEventListener("change", (event) => {
    checkTools();
    if (event.target.name === "key") apiKey.set(field("key").value.trim());
    keep();
    changed(event.target.name);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("reset-settings").addEventListener("click", reset);
  opener.addEventListener("click", () => (panel.open ? closePanel() : openPanel()));
  byId("close-settings").addEventListener("click", closePanel);
  panel.addEventListener("close", showState);
  wide.addEventListener("change", placePanel);
  checkTools();
  placePanel();
}

function keep() {
  const values = Object.fromEntries(KEPT.map((name) => [name, field(name).value]));
  remember(STORE, { ...recall(STORE, {}), ...values });
}

function reset() {
  for (const name of KEPT.slice(1)) field(name).value = "";
  checkTools();
  keep();
}

/** Shows these models for choice; keeps the last selection where it is still there. */
export function showModels(names) {
  const select = field("model");
  const wanted = select.value || recall(STORE, {}).model;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(wanted)) select.value = wanted;
  select.disabled = !names.length;
}

/** The chosen model, or "" while there is none. */
export function chosenModel() {
  return field("model").value;
}

/** The system message. */
export function systemMessage() {
  return field("system").value;
}

/** The parameters of a request: only those that are set; the server has defaults for the others. */
export function parameters() {
  const set = chosenModel() ? { model: chosenModel() } : {};
  for (const name of NUMBERS) if (field(name).value !== "") set[name] = Number(field(name).value);
  const tools = parseTools();
  if (tools?.length) set.tools = tools;
  return set;
}

/** True where every field holds something that can be sent; otherwise shows the first that does not. */
export function settingsAreValid() {
  if (form.checkValidity()) return true;
  openPanel();
  byId("more-settings").open ||= !field("tools").checkValidity();
  form.reportValidity();
  return false;
}

function parseTools() {
  try {
    return JSON.parse(field("tools").value || "[]");
  } catch {
    return null;
  }
}

function checkTools() {
  const message = Array.isArray(parseTools()) ? "" : "Tools are a JSON list, as in the OpenAI interface.";
  field("tools").setCustomValidity(message);
}

/** Opens the panel with the focus in the field for the API key. */
export function askForKey() {
  openPanel();
  field("key").focus();
}

function openPanel() {
  if (panel.open) return;
  if (wide.matches) {
    panel.setAttribute("open", ""); // unlike show(), this leaves the focus where it is
    remember(STORE, { ...recall(STORE, {}), panel: true });
  } else {
    panel.showModal();
  }
  showState();
}

function closePanel() {
  if (wide.matches) {
    if (panel.contains(document.activeElement)) opener.focus();
    panel.removeAttribute("open");
    remember(STORE, { ...recall(STORE, {}), panel: false });
    showState();
  } else {
    panel.close();
  }
}

function placePanel() {
  if (panel.open) panel.close();
  if (wide.matches && recall(STORE, {}).panel !== false) panel.setAttribute("open", "");
  showState();
}

function showState() {
  opener.setAttribute("aria-expanded", String(panel.open));
}
