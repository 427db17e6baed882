// A chart of the last minutes: lines over time, drawn as SVG.

import { element, svg } from "./dom.js";

export const WINDOW_S = 300;
const GAP_S = 3.5; // samples further apart than this are not joined
const HEIGHT = 168;
const PAD = { left: 52, right: 4, top: 10, bottom: 22 };
const STEPS = [1, 2, 3, 4, 6, 8, 10];
const NARROW = 480;

/** A number that can be drawn, or null. */
export function numeric(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/** Lowest, mean, highest and latest value of a series within the window. */
export function summary(samples, key) {
  const values = samples.map((sample) => numeric(sample.values[key])).filter((value) => value !== null);
  if (!values.length) return null;
  const sum = values.reduce((total, value) => total + value, 0);
  const now = numeric(samples.at(-1).values[key]);
  const [low, high] = values.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)],
    [Infinity, -Infinity]);
  return { low, mean: sum / values.length, high, now };
}

/** `chart`: {title, format, series: [{key, label}], top}: `top` is the least value of the axis' end. */
export function timeChart(chart) {
  const picture = svg("svg", { class: "plot", role: "img", height: HEIGHT });
  const values = chart.series.map(() => element("span", { class: "value" }, "–"));
  const when = element("span", { class: "when" });
  const legend = element("ul", { class: "legend" }, ...chart.series.map((series, index) => (
    element("li", {}, swatch(index), element("span", {}, series.label), values[index]))));
  const node = element("article", { class: `chart${chart.wide ? " wide" : ""}`, "aria-label": chart.title },
    element("div", { class: "chart-head" }, element("h3", {}, chart.title), when), legend, picture);
  let latest = { samples: [], now: 0 };
  let pointer = null;

  const redraw = () => {
    const { samples, now } = latest;
    const scale = scales(chart, samples, now, picture.clientWidth || 320);
    picture.replaceChildren(...axes(chart, scale), ...lines(chart, samples, scale));
    const picked = pointer === null ? null : nearest(samples, scale.timeAt(pointer));
    if (picked) picture.append(...cursor(chart, picked, scale));
    const shown = picked ?? samples.at(-1);
    chart.series.forEach(({ key }, index) => { values[index].textContent = show(chart, shown?.values[key]); });
    when.textContent = picked ? `${ago(now - picked.time)} ago` : "";
    picture.setAttribute("aria-label", describe(chart, samples));
  };
  picture.addEventListener("pointermove", (event) => {
    pointer = event.offsetX;
    redraw();
  });
  picture.addEventListener("pointerleave", () => {
    pointer = null;
    redraw();
  });
  new ResizeObserver(redraw).observe(node);
  const draw = (samples, now) => {
    latest = { samples, now };
    redraw();
  };
  return { node, draw };
}

function show(chart, value) {
  return numeric(value) === null ? "–" : chart.format(value);
}

/** The line of a legend's entry, solid or dashed as in the chart. */
function swatch(index) {
  return svg("svg", { class: "swatch", viewBox: "0 0 18 8", "aria-hidden": "true" },
    svg("path", { class: `line line-${index}`, d: "M1 4h16" }));
}

function scales(chart, samples, now, width) {
  const highest = Math.max(0, ...chart.series.map(({ key }) => summary(samples, key)?.high ?? 0));
  const top = chart.fixed ? chart.top : niceTop(Math.max(highest, chart.top));
  const [across, down] = [width - PAD.left - PAD.right, HEIGHT - PAD.top - PAD.bottom];
  return {
    top,
    width,
    x: (time) => PAD.left + (1 - (now - time) / WINDOW_S) * across,
    y: (value) => PAD.top + (1 - Math.min(Math.max(value / top, 0), 1)) * down,
    timeAt: (x) => now - (1 - (x - PAD.left) / across) * WINDOW_S,
  };
}

/** The next round number, so that the axis changes seldom. */
function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * STEPS.find((step) => step * power >= value * 0.9999);
}

function axes(chart, { top, width, y }) {
  const marks = [0, top / 2, top].flatMap((value) => [
    svg("line", { class: value ? "grid" : "base", x1: PAD.left, x2: width - PAD.right, y1: y(value), y2: y(value) }),
    svg("text", { x: PAD.left - 8, y: y(value) + 4, "text-anchor": "end" }, tick(chart, value)),
  ]);
  const times = (width < NARROW ? [5, 3, 1, 0] : [5, 4, 3, 2, 1, 0]).map((minutes) => svg("text", {
    x: timePlace(minutes, width), y: HEIGHT - 5, "text-anchor": anchorOf(minutes),
  }, minutes ? `−${minutes} min` : "now"));
  return [...marks, ...times];
}

/** A value on the axis: without decimals that say nothing. */
function tick(chart, value) {
  return value ? chart.format(value).replace(/\.0+(?=\D|$)/, "") : "0";
}

function timePlace(minutes, width) {
  return PAD.left + (1 - minutes / 5) * (width - PAD.left - PAD.right);
}

function anchorOf(minutes) {
  if (minutes === 5) return "start";
  return minutes ? "middle" : "end";
}

function lines(chart, samples, scale) {
  return chart.series.flatMap(({ key }, index) => {
    const runs = unbroken(samples, key);
    const path = runs.map((run) => tracePath(run, scale)).join("");
    const area = runs.map((run) => `${tracePath(run, scale)}V${scale.y(0)}H${scale.x(run[0].time).toFixed(1)}Z`).join("");
    const fill = chart.series.length === 1 ? [svg("path", { class: "area", d: area })] : [];
    return [...fill, svg("path", { class: `line line-${index}`, d: path })];
  });
}

/** Runs of samples that have a value and follow each other closely. */
function unbroken(samples, key) {
  const runs = [];
  let before = null;
  for (const { time, values } of samples) {
    const value = numeric(values[key]);
    if (value !== null) {
      if (!before || time - before.time > GAP_S) runs.push([]);
      before = { time, value };
      runs.at(-1).push(before);
    } else {
      before = null;
    }
  }
  return runs;
}

function tracePath(run, { x, y }) {
  const points = run.map(({ time, value }) => `${x(time).toFixed(1)} ${y(value).toFixed(1)}`);
  return `M${points.join("L")}${run.length === 1 ? "h.1" : ""}`;
}

function nearest(samples, time) {
  return samples.reduce((best, sample) => (
    best && Math.abs(best.time - time) <= Math.abs(sample.time - time) ? best : sample), null);
}

function cursor(chart, sample, { x, y }) {
  const place = x(sample.time);
  const dots = chart.series.map(({ key }, index) => {
    const value = numeric(sample.values[key]);
    return value === null ? null : svg("circle", { class: `point point-${index}`, cx: place, cy: y(value), r: 3.5 });
  });
  return [svg("line", { class: "cursor", x1: place, x2: place, y1: PAD.top, y2: HEIGHT - PAD.bottom }),
    ...dots.filter((dot) => dot !== null)];
}

function ago(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** The chart in words. */
function describe(chart, samples) {
  const parts = chart.series.map(({ key, label }) => {
    const found = summary(samples, key);
    if (!found) return `${label}: no values`;
    return `${label}: now ${show(chart, found.now)}, from ${chart.format(found.low)} to ${chart.format(found.high)}`;
  });
  return `${chart.title}, last 5 minutes. ${parts.join("; ")}.`;
}
