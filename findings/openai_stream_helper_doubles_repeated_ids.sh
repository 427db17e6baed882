#!/usr/bin/env bash
# openai 3.57.0.
# chat.completions.stream() joins strings of chunks that are no deltas: the id and name of a tool call that are sent with each of its chunks,
# as some servers do, come out doubled ("callcall", "ff"). And it raises LengthFinishReasonError where a plain text, without any schema or
# tool, ends by max_tokens; create(stream=True) ends there quietly. Send id and name once; catch the error around the helper.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet openai==3.57.0
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import json
import sys

import httpx2
import openai


def client(*chunks: str) -> openai.OpenAI:
    """A client whose every answer is these chunks of a stream."""
    body = "".join(chunk + "\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    headers = {"content-type": "text/event-stream"}
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=body.encode(), headers=headers))
    return openai.OpenAI(api_key="none", base_url="http://server.example/v1", max_retries=0, http_client=httpx2.Client(transport=transport))


def chunk(delta: dict, finish_reason: str | None = None, index: int = 0) -> str:
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason}
    return "data: " + json.dumps({"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})


def plain(*chunks: str) -> str:
    return str(len(list(client(*chunks).chat.completions.create(model="m", messages=[], stream=True)))) + " chunks"



def helper(*chunks: str) -> str:
    try:
        with client(*chunks).chat.completions.stream(model="m", messages=[]) as stream:
            choices = stream.get_final_completion().choices
    except Exception as error:
        return type(error).__name__
    return " ".join(f"{call.id} {call.function.name} {call.function.arguments}" for c in choices for call in c.message.tool_calls or []) or "text"


def call(**fields) -> str:
    return chunk({"tool_calls": [{"index": 0, "type": "function"} | fields]})


end = chunk({}, "tool_calls")
cases = {
    "id and name once": (call(id="call", function={"name": "f", "arguments": ""}), call(function={"arguments": "{}"}), end),
    "with every chunk": (call(id="call", function={"name": "f", "arguments": ""}), call(id="call", function={"name": "f", "arguments": "{}"}), end),
    "text that stops": (chunk({"content": "x"}, "stop"),),
    "text that is cut off": (chunk({"content": "x"}, "length"),),
}
print("openai", openai.__version__)
seen = {}
for name, chunks in cases.items():
    seen[name] = helper(*chunks)
    print(f"{name:20s} create(stream=True): {plain(*chunks)}, stream(): {seen[name]}")
sys.exit(list(seen.values()) != ["call f {}", "callcall ff {}", "text", "LengthFinishReasonError"])
PYTHON
