#!/usr/bin/env bash
# openai 3.57.0.
# chat.completions.stream() needs the choices and tool calls of a stream to begin in the order of their indices: where choice 1 (of n=2) or
# call 1 has its first chunk before 0 has one it raises IndexError. create(stream=True) reads the same answer. The chunks carry an index to be
# free in order, and choices that are generated side by side begin as they come. A server should begin all choices in order (a role each).
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


a, b = (chunk({"role": "assistant", "content": "x"}, "stop", index) for index in (0, 1))
call_0, call_1 = (
    chunk({"tool_calls": [{"index": index, "id": f"c{index}", "type": "function", "function": {"name": "f", "arguments": "{}"}}]})
    for index in (0, 1)
)
end = chunk({}, "tool_calls")
cases = {"choices 0, 1": (a, b), "choices 1, 0": (b, a), "calls 0, 1": (call_0, call_1, end), "calls 1, 0": (call_1, call_0, end)}
print("openai", openai.__version__)
seen = {}
for name, chunks in cases.items():
    seen[name] = helper(*chunks)
    print(f"{name:14s} create(stream=True): {plain(*chunks)}, stream(): {seen[name]}")
expected = {"choices 0, 1": "text", "choices 1, 0": "IndexError", "calls 0, 1": "c0 f {} c1 f {}", "calls 1, 0": "IndexError"}
sys.exit(seen != expected)
PYTHON
