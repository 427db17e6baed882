#!/usr/bin/env bash
# openai 3.57.0.
# Server-sent events that have no data are to be dropped by whoever reads them. The client drops comments (": ping"), but parses the empty text
# of an event that is "event: ping", "retry: 1000" or "id: 5" alone, or an empty "data:", as JSON, and raises JSONDecodeError in the middle of
# the stream. Keep connections alive with comments, and send event, retry and id together with data.
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


def read(extra: str) -> str:
    try:
        return plain(extra, chunk({"content": "x"}, "stop"))
    except Exception as error:
        return type(error).__name__


expected = {": ping": "1 chunks", "event: ping": "JSONDecodeError", "retry: 1000": "JSONDecodeError", "id: 5": "JSONDecodeError", "data:": "JSONDecodeError"}
print("openai", openai.__version__)
seen = {extra: read(extra) for extra in expected}
for extra, outcome in seen.items():
    print(f"{extra!r:16s} before a chunk: {outcome}")
sys.exit(seen != expected)
PYTHON
