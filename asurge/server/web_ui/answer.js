// The parts of an answer, which the chunks of a stream add up to. No DOM here.

import { formatNumber, formatSeconds } from "./dom.js";

const SHORTEST_S = 0.05; // shorter streams give no meaningful speed

/** An answer before its first chunk. `state` goes from "streaming" to "done", "stopped" or "failed". */
export function newAnswer(model) {
  return { role: "assistant", model, content: "", reasoning: "", tools: [], state: "streaming", finish: null,
    error: null, usage: null, deltas: 0, times: { start: performance.now(), first: null, last: null, thought: null } };
}

/** Adds one chunk to the answer. */
export function addChunk(answer, chunk) {
  if (chunk.usage) answer.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  if (choice.finish_reason) answer.finish = choice.finish_reason;
  const delta = choice.delta ?? {};
  const thought = delta.reasoning_content ?? delta.reasoning ?? "";
  if (!thought && !delta.content && !delta.tool_calls?.length) return;
  const { times } = answer;
  times.last = performance.now();
  times.first ??= times.last;
  answer.deltas += 1;
  answer.reasoning += thought;
  if (delta.content || delta.tool_calls?.length) times.thought ??= times.last;
  answer.content += delta.content ?? "";
  for (const part of delta.tool_calls ?? []) addToolPart(answer.tools, part);
}

function addToolPart(tools, part) {
  const index = part.index ?? tools.length;
  let tool = tools.find((known) => known.index === index);
  if (!tool) {
    tool = { index, id: part.id ?? `call_${index}`, name: "", arguments: "", result: null };
    tools.push(tool);
  }
  if (part.id) tool.id = part.id;
  tool.name += part.function?.name ?? "";
  tool.arguments += part.function?.arguments ?? "";
}

/** Ends the answer; drops what only a running stream needs. */
export function endAnswer(answer, state, error = null) {
  answer.state = state;
  answer.error = error && { message: error.message, status: error.status ?? 0 };
  answer.figures = figures(answer);
  answer.thinkingTime = thinkingTime(answer);
  delete answer.times;
}

/** Duration of the reasoning in seconds, or null. */
function thinkingTime({ reasoning, times }) {
  if (!reasoning || times.first === null) return null;
  return ((times.thought ?? times.last) - times.first) / 1000;
}

/** The line under an answer: speed, time to first token, sizes. */
function figures({ times, usage, deltas, state, finish }) {
  const parts = [];
  if (state === "stopped") parts.push("Stopped");
  if (finish === "length") parts.push("Cut at the token limit");
  const count = usage?.completion_tokens ?? deltas;
  const about = usage ? "" : "about ";
  if (times.first !== null) {
    const seconds = (times.last - times.first) / 1000;
    if (count > 1 && seconds >= SHORTEST_S) parts.push(`${about}${formatNumber((count - 1) / seconds)} tokens/s`);
    parts.push(`first token ${formatSeconds((times.first - times.start) / 1000)}`);
    parts.push(`${about}${formatNumber(count)} ${count === 1 ? "token" : "tokens"}`);
  }
  if (usage?.prompt_tokens) parts.push(`prompt ${formatNumber(usage.prompt_tokens)}${cached(usage)}`);
  return parts.join(" · ");
}

function cached(usage) {
  const count = usage.prompt_tokens_details?.cached_tokens;
  return count ? ` (${formatNumber(count)} cached)` : "";
}

/** The conversation in the form of a request. Answers that said nothing are left out, and so are unanswered calls. */
export function requestMessages(messages, system) {
  const sent = system.trim() ? [{ role: "system", content: system }] : [];
  for (const message of messages) {
    if (message.role === "user") addUser(sent, message.content);
    else sent.push(...answerMessages(message));
  }
  return sent;
}

/** Two user messages in a row, where the answer between them failed, become one: templates want turns. */
function addUser(sent, content) {
  const last = sent.at(-1);
  if (last?.role === "user") last.content += `\n\n${content}`;
  else sent.push({ role: "user", content });
}

function answerMessages({ content, tools }) {
  if (!tools.length || tools.some((tool) => tool.result === null)) {
    return content.trim() ? [{ role: "assistant", content }] : [];
  }
  const calls = tools.map((tool) => (
    { id: tool.id, type: "function", function: { name: tool.name, arguments: tool.arguments } }));
  const results = tools.map((tool) => ({ role: "tool", tool_call_id: tool.id, content: tool.result }));
  return [{ role: "assistant", content: content || null, tool_calls: calls }, ...results];
}
