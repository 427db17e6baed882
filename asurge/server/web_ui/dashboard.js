// The dashboard: polls the server's metrics every second, keeps five minutes of them, and draws charts.

import { apiKey, byId, element, formatNumber, formatSeconds } from "./dom.js";
import { numeric, summary, timeChart, WINDOW_S } from "./charts.js";

const PERIOD_MS = 1000;
const PATIENCE_MS = 5000;

const percent = (value) => `${(value * 100).toFixed(value > 0 && value < 0.0995 ? 1 : 0)}%`;
const rate = (value) => `${formatNumber(value)}/s`;

/** {title, format, series, top: the least end of the axis, fixed: whether the axis ends there always}. */
const CHARTS = [
  { title: "Throughput", format: rate, top: 10, wide: true, unit: "tokens",
    series: [{ key: "generation_tokens_per_second", label: "Generated tokens" },
      { key: "prompt_tokens_per_second", label: "Prompt tokens" }] },
  { title: "Time to first token", format: formatSeconds, top: 0.01,
    series: [{ key: "ttft_p50_s", label: "p50" }, { key: "ttft_p99_s", label: "p99" }] },
  { title: "Time between tokens", format: formatSeconds, top: 0.01,
    series: [{ key: "itl_p50_s", label: "p50" }, { key: "itl_p99_s", label: "p99" }] },
  { title: "Time to the whole answer", format: formatSeconds, top: 0.1,
    series: [{ key: "e2el_p50_s", label: "p50" }] },
  { title: "Requests", format: formatNumber, top: 4,
    series: [{ key: "running_requests", label: "Running" }, { key: "queue_size", label: "Queued" }] },
  { title: "KV cache in use", format: percent, top: 1, fixed: true, series: [{ key: "kv_usage", label: "In use" }] },
  { title: "Prefix cache hits", format: percent, top: 1, fixed: true,
    series: [{ key: "prefix_cache_hit_rate", label: "Hit rate" }] },
  { title: "Event loop lag", format: formatSeconds, top: 0.01, series: [{ key: "loop_lag_p99_s", label: "p99" }] },
];

/** {label, key, format, more: the text under the value, from the same metrics}. */
const TILES = [
  { label: "Generated tokens", key: "generation_tokens_per_second", format: rate,
    more: (get) => `prompt ${get("prompt_tokens_per_second", rate)} · mean ${get("average_throughput", rate)}` },
  { label: "Requests", key: "requests_per_second", format: rate,
    more: (get) => `whole answer ${get("e2el_p50_s", formatSeconds)}` },
  { label: "Time to first token", key: "ttft_p50_s", format: formatSeconds,
    more: (get) => `p99 ${get("ttft_p99_s", formatSeconds)} · mean ${get("average_ttft", formatSeconds)}` },
  { label: "Time between tokens", key: "itl_p50_s", format: formatSeconds,
    more: (get) => `p99 ${get("itl_p99_s", formatSeconds)}` },
  { label: "Running", key: "running_requests", format: formatNumber,
    more: (get) => `${get("queue_size", formatNumber)} queued` },
  { label: "KV cache", key: "kv_usage", format: percent,
    more: (get) => `prefix hits ${get("prefix_cache_hit_rate", percent)}` },
  { label: "Completed", key: "total_completed", format: formatNumber,
    more: (get) => `${get("total_failed", formatNumber)} failed · ${get("total_tokens", formatNumber)} tokens` },
  { label: "Compilations", key: "compilations", format: formatNumber,
    more: (get) => `${get("preemptions", formatNumber)} preemptions` },
];

const histories = new Map(); // model name: samples {time, values} of the last minutes
const charts = CHARTS.map((chart) => ({ ...timeChart(chart), chart }));
const tiles = TILES.map(tile);
const rows = CHARTS.flatMap((chart) => chart.series.map((series) => tableRow(chart, series)));
let timer = 0;
let polling = null; // the AbortController of the poll that is out
let lastAnswer = null;

const seconds = () => performance.now() / 1000;

function tile({ label, key, format, more }) {
  const value = element("dd", { class: "tile-value" }, "–");
  const extra = element("dd", { class: "tile-more" }, "\u00a0");
  const node = element("div", { class: "tile" }, element("dt", {}, label), value, extra);
  const update = (values) => {
    const get = (name, show) => (numeric(values[name]) === null ? "–" : show(values[name]));
    value.textContent = get(key, format);
    extra.textContent = more(get).split(" · ").map((part) => part.replaceAll(" ", "\u00a0")).join(" · ");
  };
  return { node, update };
}

function tableRow(chart, { key, label }) {
  const cells = ["now", "low", "mean", "high"].map((name) => ({ name, node: element("td", { class: "to-end" }, "–") }));
  const node = element("tr", {}, element("th", { scope: "row" }, `${chart.title}, ${label}`),
    ...cells.map((cell) => cell.node));
  const update = (samples) => {
    const found = summary(samples, key);
    for (const { name, node: cell } of cells) {
      cell.textContent = numeric(found?.[name]) === null ? "–" : chart.format(found[name]);
    }
  };
  return { node, update };
}

/** Fetches the metrics once, and again a second later; not while the page is hidden. */
async function poll() {
  const mine = polling = new AbortController();
  const patience = setTimeout(() => mine.abort(), PATIENCE_MS);
  const outcome = await fetchData(mine.signal).catch((error) => error);
  clearTimeout(patience);
  if (mine !== polling) return;
  if (outcome instanceof Error) showOutage(outcome);
  else showData(outcome);
  timer = setTimeout(poll, PERIOD_MS);
}

async function fetchData(signal) {
  const response = await fetch("dashboard/data", { headers: apiKey.headers(), cache: "no-store", signal });
  if (response.status === 401 || response.status === 403) {
    throw new Error("The server wants an API key: enter it in the settings of the chat page, then come back.");
  }
  if (!response.ok) throw new Error(`The server answers with an error (${response.status}).`);
  return response.json();
}

function showData(data) {
  lastAnswer = seconds();
  const models = data.models ?? {};
  for (const [name, values] of Object.entries(models)) addSample(name, values ?? {});
  for (const name of histories.keys()) if (!(name in models)) histories.delete(name);
  showModels([...histories.keys()]);
  byId("outage").hidden = true;
  document.body.classList.remove("stale");
  showHealth("live", "Live");
  byId("server").textContent = serverLine(data);
  draw();
}

function addSample(name, values) {
  const time = seconds();
  const samples = (histories.get(name) ?? []).filter((sample) => time - sample.time <= WINDOW_S);
  histories.set(name, [...samples, { time, values }]);
}

function serverLine({ version, uptime_s: uptime }) {
  const parts = [];
  if (version) parts.push(`asurge ${version}`);
  if (numeric(uptime) !== null) parts.push(`up ${duration(uptime)}`);
  return parts.join(" · ");
}

function duration(total) {
  const [days, hours, minutes] = [Math.floor(total / 86400), Math.floor(total / 3600) % 24, Math.floor(total / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${Math.floor(total % 60)} s` : `${Math.floor(total)} s`;
}

function showOutage(error) {
  const lost = error.name === "AbortError" || error instanceof TypeError || error instanceof SyntaxError;
  const reason = lost ? "The server does not answer." : error.message;
  const message = `${reason} Trying again every second.`;
  const outage = byId("outage");
  if (outage.textContent !== message) outage.textContent = message;
  outage.hidden = false;
  document.body.classList.add("stale");
  showHealth("lost", lastAnswer === null ? "No answer" : `No answer for ${duration(seconds() - lastAnswer)}`);
  draw();
}

function showHealth(state, text) {
  byId("health").dataset.state = state;
  byId("health-text").textContent = text;
}

/** Shows the choice of models where there are several; keeps the selected one. */
function showModels(names) {
  const select = byId("model");
  const known = [...select.options].map((option) => option.value);
  if (known.join("\n") !== names.join("\n")) {
    const wanted = select.value;
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(wanted)) select.value = wanted;
  }
  byId("model-choice").hidden = names.length < 2;
}

function draw() {
  const samples = histories.get(byId("model").value) ?? [];
  const now = seconds();
  for (const { update } of tiles) update(samples.at(-1)?.values ?? {});
  for (const chart of charts) chart.draw(samples, now);
  for (const { update } of rows) update(samples);
}

function pause() {
  clearTimeout(timer);
  polling?.abort();
  polling = null;
}

function start() {
  byId("tiles").append(...tiles.map((entry) => entry.node));
  byId("charts").append(...charts.map((entry) => entry.node));
  byId("rows").append(...rows.map((entry) => entry.node));
  byId("model").addEventListener("change", draw);
  document.addEventListener("visibilitychange", () => {
    pause();
    if (!document.hidden) poll();
  });
  if (!document.hidden) poll();
}

start();
