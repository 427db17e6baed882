// Talks to the server: the model list, and chat completions as a stream of events. Addresses are relative, since an
// application may serve all of this under a prefix.

import { apiKey } from "./dom.js";

/** A failure as the reader should see it. `status` is the HTTP status, 0 where there was no answer at all. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The names of the models that the server offers. */
export async function listModels() {
  const response = await call("v1/models", { headers: apiKey.headers() });
  const list = await response.json();
  return (list.data ?? []).map((model) => String(model.id));
}

/** Requests a streamed chat completion and yields its chunks; ends at `[DONE]`, throws ServerError on any failure. */
export async function* streamChat(body, signal) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream", ...apiKey.headers() };
  const response = await call("v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
    throw new ServerError("The server answered with something other than a stream.", response.status);
  }
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parse(data);
    if (chunk.error) throw new ServerError(errorMessage(chunk) ?? "The server reported an error.", 200);
    yield chunk;
  }
  throw new ServerError("The connection closed before the answer was complete.");
}

async function call(address, options) {
  const response = await fetch(address, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it still running?");
  });
  if (response.ok) return response;
  const problem = await response.json().catch(() => null);
  const said = errorMessage(problem) ?? `The server answered ${response.status} ${response.statusText}`.trim();
  throw new ServerError(said, response.status);
}

function errorMessage(body) {
  const message = body?.error?.message ?? body?.error;
  return typeof message === "string" && message ? message : null;
}

function parse(data) {
  try {
    return JSON.parse(data) ?? {};
  } catch {
    throw new ServerError("The server sent an event that is not JSON.", 200);
  }
}

/** The `data` of each server-sent event. Comment lines, which keep the connection alive, are skipped. */
async function* events(stream) {
  let data = [];
  for await (const line of lines(stream)) {
    if (line === "" && data.length) {
      yield data.join("\n");
      data = [];
    } else if (line.startsWith("data:")) {
      data.push(line.slice(line[5] === " " ? 6 : 5));
    }
  }
}

async function* lines(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) return;
      const parts = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = parts.pop();
      for (const part of parts) yield part.endsWith("\r") ? part.slice(0, -1) : part;
    }
  } finally {
    reader.cancel().catch(() => {}); // a reader that leaves early ends the request
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The connection to the server was lost.");
  }
}
