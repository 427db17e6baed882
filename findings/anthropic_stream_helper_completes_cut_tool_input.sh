#!/usr/bin/env bash
# anthropic 2.14.0.
# messages.stream() parses a tool's input that max_tokens cut off, and gives it as if it were whole: an open string's key is missing, and
# a number is what its digits were so far ("amount": 12 of 1250). Only stop_reason tells. Nor is text that a block starts with an event of
# text_stream, though it is in the final message. Look at stop_reason before a tool is run.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet anthropic==2.14.0
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import json
import sys

import anthropic
import httpx2


def event(kind: str, **fields) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n"


def stream(stop_reason: str, begin: dict, **delta):
    """Text by events, and the final block, of an answer of one block."""
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None, "stop_sequence": None}
    body = "".join((
        event("message_start", message=message | {"usage": {"input_tokens": 1, "output_tokens": 0}}),
        event("content_block_start", index=0, content_block=begin),
        event("content_block_delta", index=0, delta=delta),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": stop_reason, "stop_sequence": None}, usage={"output_tokens": 5}),
        event("message_stop"),
    ))
    headers = {"content-type": "text/event-stream"}
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, content=body.encode(), headers=headers))
    client = anthropic.Anthropic(api_key="none", base_url="http://server.example", max_retries=0, http_client=httpx2.Client(transport=transport))
    with client.messages.stream(model="m", max_tokens=5, messages=[{"role": "user", "content": "x"}]) as answer:
        return "".join(answer.text_stream), answer.get_final_message().content[0]


tool = {"type": "tool_use", "id": "t", "name": "pay", "input": {}}
print("anthropic", anthropic.__version__)
inputs = []
for text in ('{"amount": 1250, "to": "x"}', '{"amount": 12', '{"amount": 1250, "to": "x'):
    stop_reason = "tool_use" if text.endswith("}") else "max_tokens"
    inputs.append(stream(stop_reason, tool, type="input_json_delta", partial_json=text)[1].input)
    print(f"{text:28s} {stop_reason:10s} input {inputs[-1]}")
by_events, block = stream("end_turn", {"type": "text", "text": "Hel"}, type="text_delta", text="lo")
print(f"a block that starts with 'Hel': text_stream {by_events!r}, final message {block.text!r}")
sys.exit((inputs, by_events, block.text) != ([{"amount": 1250, "to": "x"}, {"amount": 12}, {"amount": 1250}], "lo", "Hello"))
PYTHON
