"""What is said of schemas that grammars cannot hold, or cannot read."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.server.chat import ASK
from tests.server.clients import CHAT, TEXT

SET: dict[str, Any] = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}},
}
NOTE = "uniqueItems at /properties/tags"


def tool(schema: dict[str, Any], **own: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "tag_it", "parameters": schema, **own}}


FORM = {"type": "json_schema", "json_schema": {"schema": SET}}
TOLD: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "a form": (CHAT, {"messages": ASK, "response_format": FORM}, NOTE),
    "a form that is held": (CHAT, {"messages": ASK, "response_format": {"type": "json_object"}}, None),
    "a completion's": (TEXT, {"prompt": "a", "structured_outputs": {"json": SET}}, NOTE),
    "a forced call": (CHAT, {"messages": ASK, "tools": [tool(SET)], "tool_choice": "required"}, f"{NOTE} of tag_it"),
    "a forced call beside a form": (CHAT, {"messages": ASK, "tools": [tool(SET)], "tool_choice": "required", "response_format": FORM}, f"{NOTE} of tag_it"),
    "a strict tool beside a form": (CHAT, {"messages": ASK, "tools": [tool(SET, strict=True)], "response_format": FORM}, f"{NOTE}; {NOTE} of tag_it"),
    "a tool that binds nothing": (CHAT, {"messages": ASK, "tools": [tool(SET)]}, None),
    "responses": ("/v1/responses", {"input": "a", "text": {"format": {"type": "json_schema", "name": "a", "schema": SET}}}, NOTE),
    "messages": ("/v1/messages", {"messages": ASK, "output_config": {"format": {"type": "json_schema", "schema": SET}}}, NOTE),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", TOLD)
async def test_what_is_left_open_is_told(http: aiohttp.ClientSession, case: str, stream: bool) -> None:
    path, body, wanted = TOLD[case]
    async with http.post(path, json={**body, "max_tokens": 2, "max_output_tokens": 16, "stream": stream}) as response:
        assert response.status == 200, await response.text()
        assert response.headers.get("X-Asurge-Relaxed") == wanted


BAD = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "labels": {"type": "array", "items": {"type": "strin"}}},
}


@pytest.mark.parametrize("given", [{"tool_choice": "required"}, {"response_format": FORM}, {}], ids=str)
async def test_a_wrong_schema_is_told_with_its_place(http: aiohttp.ClientSession, given: dict[str, Any]) -> None:
    tools = [
        {"type": "web_search"},
        tool({}),
        {"type": "function", "function": {"name": "other", "parameters": BAD, "strict": True}},
    ]
    async with http.post(CHAT, json={"messages": ASK, "tools": tools, **given}) as response:
        told = (await response.json())["error"]
        assert (response.status, told["param"]) == (400, "tools[2].function.parameters")
    assert "at /properties/labels" in told["message"]
    assert "strin" in told["message"]
    assert "%" not in told["message"]
