"""What was answered comes back, from asurge or from a peer, and is never refused: a conversation with it would be lost for ever."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from asurge import Engine
from asurge.server import make_app
from asurge.text import render_chat
from tests.server.chat import ASK
from tests.server.clients import CHAT
from tests.server.conftest import Running
from tests.server.scripted import Scripted

STRICT = """
{%- for m in messages -%}
[{{ m.role }}]{{ m.content.strip() + '' }}
{%- if 'tool_calls' in m -%}{%- for call in m.tool_calls -%}
({{ call.function.name + '' }}{% for key, value in call.function.arguments.items() %} {{ key }}={{ value }}{% endfor %})
{%- endfor -%}{{ '' if m.tool_calls else raise_exception('an empty list of calls') }}{%- endif -%}
{%- if m.reasoning_content is defined -%}<{{ m.reasoning_content + '' }}>{%- endif -%}
{%- endfor -%}
"""
"""A template that takes content for a text and arguments for an object, as many do."""


def call(arguments: Any = '{"city": "Rome"}', **own: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}, **own}


def assistant(**own: Any) -> dict[str, Any]:
    return {"role": "assistant", **own}


RESULT = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
CALLED = "[assistant](weather city=Rome)"
CHATS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a call without content": ([assistant(content=None, tool_calls=[call()]), RESULT], f"{CALLED}[tool]sunny"),
    "a call, and no content at all": ([assistant(tool_calls=[call()]), RESULT], f"{CALLED}[tool]sunny"),
    "a call that was cut off": ([assistant(tool_calls=[call('{"city": "Ro')])], "[assistant](weather)"),
    "a call with a list": ([assistant(tool_calls=[call('["Rome"]')])], "[assistant](weather)"),
    "a call with a list that is no text": ([assistant(tool_calls=[call(["Rome"])])], "[assistant](weather)"),
    "a call with null": ([assistant(tool_calls=[call(None)])], "[assistant](weather)"),
    "a call with null in text": ([assistant(tool_calls=[call("null")])], "[assistant](weather)"),
    "a call with nothing": ([assistant(tool_calls=[call("")])], "[assistant](weather)"),
    "a call with an object": ([assistant(tool_calls=[call({"city": "Rome"})])], CALLED),
    "a call without a type": ([assistant(tool_calls=[call(type=None)])], CALLED),
    "a custom call": ([assistant(tool_calls=[{"id": "c", "type": "custom", "custom": {"name": "patch", "input": "x"}}])], "[assistant](patch input=x)"),
    "the old form of a call": ([assistant(content=None, function_call={"name": "weather", "arguments": '{"city": "Rome"}'})], CALLED),
    "no calls": ([assistant(content="Hi", tool_calls=[])], "[assistant]Hi"),
    "nulls": ([assistant(content="Hi", tool_calls=None, function_call=None, refusal=None, annotations=None, audio=None)], "[assistant]Hi"),
    "reasoning alone": ([assistant(content=None, reasoning_content="Hm.")], "[assistant]<Hm.>"),
    "reasoning under its other name": ([assistant(reasoning="Hm.")], "[assistant]<Hm.>"),
    "nothing": ([assistant(content=None)], "[assistant]"),
    "a result without content": ([assistant(tool_calls=[call()]), {**RESULT, "content": None}], f"{CALLED}[tool]"),
    "a refusal": ([assistant(content=None, refusal="No.")], "[assistant]No."),
    "a refusal as a part": ([assistant(content=[{"type": "refusal", "refusal": "No."}])], "[assistant]No."),
    "parts of responses": ([{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}, assistant(content=[{"type": "output_text", "text": "Ho"}])], "[user]Hi[assistant]Ho"),
    "a picture from a tool": ([assistant(tool_calls=[call()]), {**RESULT, "content": [{"type": "text", "text": "see "}, PICTURE]}], f"{CALLED}[tool]see [image_url left out: only text can be read]"),
    "a picture that was answered": ([{"role": "user", "content": [PICTURE]}, assistant(content="Nice."), *ASK], f"[user][image_url left out: only text can be read][assistant]Nice.[user]{ASK[0]['content']}"),
    "parts of answers that are not text": ([assistant(content=[{"type": "thinking", "thinking": []}, {"type": "text", "text": "Hi"}])], "[assistant]Hi"),
}  # fmt: skip


def use(name: str = "weather", **own: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": "c1", "name": name, "input": {"city": "Rome"}, **own}


def result(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": content}]}


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
NOTE = "[image left out: only text can be read]"
MESSAGES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a call": ([assistant(content=[use()]), result("sunny")], f"{CALLED}[tool]sunny"),
    "a call with null": ([assistant(content=[use(input=None)]), result("sunny")], "[assistant](weather)[tool]sunny"),
    "a call with a text": ([assistant(content=[use(input="{")]), result("sunny")], "[assistant](weather)[tool]sunny"),
    "no result": ([assistant(content=[use()]), result(None)], f"{CALLED}[tool]"),
    "a picture as a result": ([assistant(content=[use()]), result([IMAGE])], f"{CALLED}[tool]{NOTE}"),
    "a reference as a result": ([assistant(content=[use()]), result([{"type": "tool_reference", "tool_name": "x"}])], f"{CALLED}[tool][tool_reference left out: only text can be read]"),
    "an empty answer": ([assistant(content=[]), *ASK], f"[assistant][user]{ASK[0]['content']}"),
    "reasoning alone": ([assistant(content=[{"type": "thinking", "thinking": "Hm.", "signature": ""}]), *ASK], f"[assistant]<Hm.>[user]{ASK[0]['content']}"),
    "reasoning that nobody may read": ([assistant(content=[{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "Hi"}]), *ASK], f"[assistant]Hi<>[user]{ASK[0]['content']}"),
    "what others' servers did": ([assistant(content=[{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}, {"type": "text", "text": "Hi"}]), *ASK], f"[assistant]Hi[user]{ASK[0]['content']}"),
    "a picture that was answered": ([{"role": "user", "content": [IMAGE]}, assistant(content="Nice."), *ASK], f"[user]{NOTE}[assistant]Nice.[user]{ASK[0]['content']}"),
}  # fmt: skip

CITY = '{"city": "Rome"}'
FUNCTION_CALL = {"type": "function_call", "id": "fc", "call_id": "c1", "name": "weather", "arguments": CITY}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "sunny"}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi", "annotations": []}]}
REASONING = {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
ITEMS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "a call": ([FUNCTION_CALL, OUTPUT], f"{CALLED}[tool]sunny"),
    "a call that was cut off": ([{**FUNCTION_CALL, "arguments": '{"ci'}], "[assistant](weather)"),
    "a call with null": ([{**FUNCTION_CALL, "arguments": None}], "[assistant](weather)"),
    "no result": ([FUNCTION_CALL, {**OUTPUT, "output": None}], f"{CALLED}[tool]"),
    "a picture as a result": ([FUNCTION_CALL, {**OUTPUT, "output": [{"type": "input_image", "image_url": "x"}]}], f"{CALLED}[tool][input_image left out: only text can be read]"),
    "a result in parts": ([FUNCTION_CALL, {**OUTPUT, "output": [{"type": "input_text", "text": "sunny"}]}], f"{CALLED}[tool]sunny"),
    "a result that is an object": ([FUNCTION_CALL, {**OUTPUT, "output": {"sky": "blue"}}], CALLED + '[tool]{"sky": "blue"}'),
    "reasoning alone": ([REASONING, *ASK], f"[assistant]<Hm.>[user]{ASK[0]['content']}"),
    "a summary of reasoning": ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}], "[assistant]<Hm.>"),
    "reasoning that nobody may read": ([{"type": "reasoning", "summary": [], "encrypted_content": "x"}, SAID], "[assistant]Hi"),
    "reasoning, a text and a call": ([REASONING, SAID, FUNCTION_CALL, OUTPUT], "[assistant]Hi(weather city=Rome)<Hm.>[tool]sunny"),
    "reasoning, a call and a text": ([REASONING, FUNCTION_CALL, SAID, OUTPUT], "[assistant]Hi(weather city=Rome)<Hm.>[tool]sunny"),
    "two texts": ([SAID, SAID], "[assistant]Hi[assistant]Hi"),
    "a refusal": ([{"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}], "[assistant]No."),
    "a custom call": ([{"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "x"}, {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"}], "[assistant](patch input=x)[tool]ok"),
    "a call of a shell": ([{"type": "local_shell_call", "call_id": "c", "action": {"type": "exec"}}, {"type": "local_shell_call_output", "call_id": "c", "output": "ok"}], "[assistant](local_shell type=exec)[tool]ok"),
    "a patch": ([{"type": "apply_patch_call", "call_id": "c", "operation": {"type": "delete_file"}}], "[assistant](apply_patch type=delete_file)"),
    "what others' servers did": ([{"type": "web_search_call", "id": "w", "status": "completed", "action": {"type": "search"}}, {"type": "mcp_list_tools"}, SAID], "[assistant]Hi"),
    "a picture that was answered": ([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, FUNCTION_CALL, OUTPUT], f"[user][input_image left out: only text can be read]{CALLED}[tool]sunny"),
}  # fmt: skip

CASES = [
    (path, key, name, *case)
    for path, key, cases in (
        (CHAT, "messages", CHATS),
        ("/v1/messages", "messages", MESSAGES),
        ("/v1/responses", "input", ITEMS),
    )
    for name, case in cases.items()
]


@pytest.mark.parametrize(("path", "key", "name", "said", "wanted"), CASES, ids=[f"{one[0]}-{one[2]}" for one in CASES])
async def test_what_was_answered_comes_back(
    tiny: Engine,
    running: Running,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    key: str,
    name: str,
    said: list[dict[str, Any]],
    wanted: str,
) -> None:
    rendered = list[str]()

    async def chat(messages: Any, params: Any, **how: Any) -> Scripted:
        given = {name: how[name] for name in ("tools", "add_generation_prompt", "continue_final_message")}
        rendered.append(render_chat(tiny.tokenizer, messages, chat_template=STRICT, **given))
        return Scripted("Yes.")

    monkeypatch.setattr(tiny, "chat", chat)
    body = {key: [*ASK, *said], "max_tokens": 1, "max_output_tokens": 1}
    if path == "/v1/messages" and said[-1]["role"] == "assistant":
        body[key] = [*ASK, *said, *ASK]
    url = await running.start(make_app(tiny))
    async with aiohttp.ClientSession(url) as http, http.post(path, json=body) as response:
        assert response.status == 200, (name, await response.text())
    assert rendered == [f"[user]{ASK[0]['content']}{wanted}"]
