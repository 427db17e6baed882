"""Custom tools: the model calls functions, clients get texts."""

from __future__ import annotations

import json
import re
from typing import Any

import aiohttp
import msgspec
import openai
import pytest

from asurge import Engine
from asurge.server import make_app
from asurge.server.chat.tools import relaxed, tool_use
from asurge.server.errors import ApiError
from asurge.server.schema.chat import ChatCompletionRequest
from tests.server.chat import ASK, WEATHER
from tests.server.clients import CHAT
from tests.server.conftest import Running
from tests.server.scripted import Scripted, pieces

PATCH: dict[str, Any] = {"type": "custom", "custom": {"name": "patch", "description": "Change files."}}
REGEX = {"type": "grammar", "syntax": "regex", "definition": "(up|down) [1-9]"}
LARK = {"type": "grammar", "syntax": "lark", "definition": 'start: "up" | "down"'}
TEXT = '*** Begin\n-"a\\b"\n+😀\n'
NAMED = {"type": "custom", "custom": {"name": "patch"}}


def custom(form: dict[str, Any]) -> dict[str, Any]:
    """A tool as chat writes it."""
    if form["type"] == "grammar":
        form = {"type": "grammar", "grammar": {name: form[name] for name in ("syntax", "definition")}}
    return {**PATCH, "custom": {**PATCH["custom"], "format": form}}


def asked(*tools: dict[str, Any], **given: Any) -> ChatCompletionRequest:
    return msgspec.convert({"messages": ASK, "tools": tools, **given}, ChatCompletionRequest)


def written(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.mark.parametrize("form", [None, {"type": "text"}, LARK, REGEX], ids=["none", "text", "lark", "regex"])
def test_the_model_is_told_of_a_function(form: dict[str, Any] | None) -> None:
    use = tool_use(asked(PATCH if form is None else custom(form), WEATHER))
    assert use.tools is not None
    function = use.tools[0]["function"]
    assert function["name"] == "patch"
    assert function["parameters"]["required"] == ["input"]
    assert (LARK["definition"] in function["description"]) == (form is LARK)
    assert function["description"].startswith("Change files.")
    assert relaxed({}, use) == (["lark grammar of patch"] if form is LARK else [])
    assert [one["name"] for one in use.bound] == (["patch"] if form is REGEX else [])


@pytest.mark.parametrize("form", [{"type": "other"}, {"type": "grammar"}, {"type": "grammar", "syntax": "ebnf", "definition": ""}, {"type": "grammar", "grammar": None}, {"type": "grammar", "syntax": "lark", "definition": 1}])  # fmt: skip
def test_formats_that_are_none_are_refused(form: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="format of tool 'patch'"):
        tool_use(asked({**PATCH, "custom": {"name": "patch", "format": form}}))


@pytest.mark.parametrize("choice", [NAMED, {"type": "custom", "name": "patch"}, {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}])  # fmt: skip
def test_custom_tools_are_chosen_by_name(choice: dict[str, Any]) -> None:
    assert [one["function"]["name"] for one in tool_use(asked(PATCH, WEATHER, tool_choice=choice)).forced] == ["patch"]


@pytest.mark.parametrize(
    ("said", "calls"),
    [
        (written("patch", {"input": TEXT}), [("patch", TEXT)]),
        (f"Well. {written('patch', {'input': TEXT})}\n{written('get_weather', {'city': 'Rom', 'days': 1})}\n{written('patch', {'input': ''})}", [("patch", TEXT), ("get_weather", '{"city": "Rom", "days": 1}'), ("patch", "")]),
        (written("patch", {"input": TEXT})[:67], [("patch", TEXT[:11])]),
        (written("patch", {"diff": "x"}), [("patch", '{"diff": "x"}')]),
    ],
    ids=["one", "several", "cut off", "other arguments"],
)  # fmt: skip
async def test_calls_come_back_as_texts(
    demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch, said: str, calls: list[tuple[str, str]]
) -> None:
    url, seeds = await running.start(make_app(demo, tool_format="hermes")), iter(range(100))

    async def chat(*_: Any, **__: Any) -> Scripted:
        return Scripted(*pieces(said, next(seeds)))

    monkeypatch.setattr(demo, "chat", chat)
    given: dict[str, Any] = {"model": "demo", "messages": ASK, "tools": [PATCH, WEATHER]}
    flat = {"type": "custom", "name": "patch"}
    function = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
    wanted = [("function" if name == "get_weather" else "custom", name, text) for name, text in calls]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        choice = (await client.chat.completions.create(**given)).choices[0]
        found = [one.to_dict() for one in choice.message.tool_calls or ()]
        assert choice.finish_reason == "tool_calls"
        assert [as_call(one) for one in found] == wanted
        for _ in range(3):
            parts = [part async for part in await client.chat.completions.create(stream=True, **given)]
            assert [as_call(one) for one in joined(parts)] == wanted
        answer: Any = await client.responses.create(model="demo", input="x", tools=[flat, function])  # type: ignore[list-item]
        events: list[Any] = [event async for event in await client.responses.create(model="demo", input="x", tools=[flat, function], stream=True)]  # type: ignore[list-item]  # fmt: skip
    for response in (answer, events[-1].response):
        items = [one for one in response.output if one.type.endswith("_call")]
        assert [as_item(one) for one in items] == wanted
    texts = [(event.item_id, event.input) for event in events if event.type == "response.custom_tool_call_input.done"]
    assert [text for _, text in texts] == [text for kind, _, text in wanted if kind == "custom"]
    for item_id, text in texts:
        deltas = (event.delta for event in events if event.type == "response.custom_tool_call_input.delta" and event.item_id == item_id)  # fmt: skip
        assert "".join(deltas) == text


def as_call(call: dict[str, Any]) -> tuple[str, str, str]:
    own = call[call["type"]]
    return call["type"], own["name"], own["input" if call["type"] == "custom" else "arguments"]


def as_item(item: Any) -> tuple[str, str, str]:
    return ("custom", item.name, item.input) if item.type == "custom_tool_call" else ("function", item.name, item.arguments)  # fmt: skip


def joined(parts: list[Any]) -> list[dict[str, Any]]:
    """What a client makes of the pieces of calls."""
    calls = list[dict[str, Any]]()
    for call in (call.to_dict() for part in parts for choice in part.choices for call in choice.delta.tool_calls or ()):
        if call.get("id") is not None:
            assert call["index"] == len(calls)
            calls.append(call)
            continue
        kind = calls[call["index"]]["type"]
        (field,) = call[kind]
        calls[call["index"]][kind][field] += call[kind][field]
    return calls


@pytest.mark.parametrize("name", ["hermes", "mistral", "qwen3_coder"])
async def test_a_regular_expression_binds_a_forced_text(demo: Engine, running: Running, name: str) -> None:
    url = await running.start(make_app(demo, tool_format=name))
    body = {"messages": ASK, "tools": [custom(REGEX)], "tool_choice": NAMED, "temperature": 1.5, "max_tokens": 200}
    async with aiohttp.ClientSession(url) as http:
        for seed in range(3):
            async with http.post(CHAT, json={**body, "seed": seed}) as response:
                told = await response.json()
                assert response.status == 200, told
            (call,) = told["choices"][0]["message"]["tool_calls"]
            assert re.fullmatch(REGEX["definition"], call["custom"]["input"])


async def test_a_call_and_its_result_go_on(client: openai.AsyncOpenAI) -> None:
    tool: Any = {"type": "custom", "name": "patch", "format": REGEX}
    choice: Any = {"type": "custom", "name": "patch"}
    answer = await client.responses.create(model="demo", input="x", tools=[tool], tool_choice=choice)
    (call,) = answer.output
    assert call.type == "custom_tool_call"
    result: Any = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "done"}
    kept = await client.responses.create(model="demo", input=[result], tools=[tool], previous_response_id=answer.id)
    said: Any = [{"role": "user", "content": "x"}, call.to_dict(), result]
    again = await client.responses.create(model="demo", input=said, tools=[tool])
    assert kept.usage is not None
    assert again.usage is not None
    assert kept.usage.input_tokens == again.usage.input_tokens
