"""Texts of models that call tools and reason, from the model to OpenAI's and Anthropic's clients."""

from __future__ import annotations

import json
import re
from typing import Any

import anthropic
import openai
import pytest

from asurge import Engine
from asurge.parsing import REASONING_FORMATS
from asurge.server import make_app
from asurge.server.state import STATE
from tests.server.chat import ASK, WEATHER, merged, whole
from tests.server.conftest import Running
from tests.server.scripted import Scripted, pieces

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln \\"am\\" Rhein", "days": 2}}\n</tool_call>'
MISTRAL = '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Rom", "days": 1}}]'
TEXTS: dict[str, tuple[dict[str, str], str, dict[str, Any]]] = {
    "plain": ({}, "An answer, and no more.", {"content": "An answer, and no more."}),
    "a call": ({"tool_format": "hermes"}, f"Let me see.\n{CALL}", {"content": "Let me see.\n", "names": ["get_weather"]}),
    "two calls": ({"tool_format": "hermes"}, f"{CALL}\n{CALL}", {"content": "", "names": ["get_weather"] * 2}),
    "mistral": ({"tool_format": "mistral"}, MISTRAL, {"content": "", "names": ["get_weather"]}),
    "reasoning": ({"reasoning_format": "think"}, "<think>\nHm, 1 < 2.\n</think>\n\nYes.", {"content": "Yes.", "reasoning": "Hm, 1 < 2."}),
    "both": ({"tool_format": "hermes", "reasoning_format": "think"}, f"<think>Look it up.</think>{CALL}", {"content": "", "reasoning": "Look it up.", "names": ["get_weather"]}),
    "the beginning of a call": ({"tool_format": "hermes"}, "An answer <tool", {"content": "An answer <tool", "names": []}),
    "no call": ({"tool_format": "hermes"}, "<tool_call>nonsense</tool_call>", {"names": []}),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
async def test_streamed_and_whole_are_the_same(
    demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    settings, text, wanted = TEXTS[case]
    url = await running.start(make_app(demo, **settings))
    seeds = iter(range(100))

    async def chat(*_: Any, **__: Any) -> Scripted:
        return Scripted(*pieces(text, next(seeds)))

    monkeypatch.setattr(demo, "chat", chat)
    given: dict[str, Any] = {"model": "demo", "messages": ASK, "tools": [WEATHER]}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = whole((await client.chat.completions.create(**given)).choices[0])
        for _ in range(5):
            parts = [part async for part in await client.chat.completions.create(stream=True, **given)]
            assert merged(parts) == answer
        if "reasoning" in wanted:
            quiet = await client.chat.completions.create(**given, extra_body={"include_reasoning": False})
            assert not getattr(quiet.choices[0].message, "reasoning_content", None)
        one = await client.chat.completions.create(**given, parallel_tool_calls=False)
        assert len(one.choices[0].message.tool_calls or ()) <= 1
        response = await client.responses.create(model="demo", input="x", tools=[{"type": "function", **WEATHER["function"]}])  # type: ignore[dict-item,list-item]  # fmt: skip
    names = [call["name"] for call in answer["calls"]]
    assert names == wanted.get("names", [])
    assert answer["finish_reason"] == ("tool_calls" if names else "stop")
    for field in ("content", "reasoning"):
        if field in wanted:
            assert answer[field].strip() == wanted[field].strip()
    for call in answer["calls"]:
        assert json.loads(call["arguments"]).keys() == {"city", "days"}
    kinds = [item.type for item in response.output]
    assert kinds.count("function_call") == len(names)
    assert ("reasoning" in kinds) == ("reasoning" in wanted)
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none") as claude:
        tool: Any = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}  # type: ignore[index]
        message = await claude.messages.create(model="demo", max_tokens=9, messages=ASK, tools=[tool])
        assert [block.name for block in message.content if block.type == "tool_use"] == names
        assert message.stop_reason == ("tool_use" if names else "end_turn")
        assert any(block.type == "thinking" for block in message.content) == ("reasoning" in wanted)
        async with claude.messages.stream(model="demo", max_tokens=9, messages=ASK, tools=[tool]) as stream:
            streamed = await stream.get_final_message()
        told = [[block.model_dump(exclude={"id"}) for block in one.content] for one in (message, streamed)]
        assert told[0] == told[1]


@pytest.mark.parametrize("case", ["reasoning", "both", "plain", "much reasoning"])
async def test_tokens_of_reasoning_are_counted_apart(
    demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """As many as its text has, however it comes and whether or not it is told."""
    much = ({"reasoning_format": "think"}, f"<think>{'Hm, 1 < 2. ' * 1000}</think>Yes.", {"reasoning": "Hm, 1 < 2. " * 1000})  # fmt: skip
    settings, text, wanted = much if case == "much reasoning" else TEXTS[case]
    url = await running.start(make_app(demo, **settings))
    seeds = iter(range(100))

    async def chat(*_: Any, **__: Any) -> Scripted:
        return Scripted(*pieces(text, next(seeds)))

    monkeypatch.setattr(demo, "chat", chat)
    count = len(demo.tokenizer.encode(wanted.get("reasoning", "").strip(), add_special_tokens=False))
    given: dict[str, Any] = {"model": "demo", "messages": ASK, "tools": [WEATHER]}
    usages = list[Any]()
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        for extra in ({}, {"include_reasoning": False}):
            usages.append((await client.chat.completions.create(**given, extra_body=extra)).usage)
            for _ in range(3):
                stream = await client.chat.completions.create(stream=True, stream_options={"include_usage": True}, extra_body=extra, **given)  # fmt: skip
                usages += [part.usage async for part in stream if part.usage is not None]
        assert [usage.completion_tokens_details.reasoning_tokens for usage in usages] == [pytest.approx(count, abs=1)] * 8  # fmt: skip
        assert len({usage.completion_tokens_details.reasoning_tokens for usage in usages}) == 1
        whole = await client.responses.create(model="demo", input="x")
        async with client.responses.stream(model="demo", input="x") as events:
            streamed = await events.get_final_response()
        kept = await client.responses.retrieve(whole.id)
    for response in (whole, streamed, kept):
        assert response.usage is not None
        told = response.usage.output_tokens_details.reasoning_tokens
        assert told == usages[0].completion_tokens_details.reasoning_tokens


@pytest.mark.parametrize("tool_format", ["mistral", "mistral_v11"])
async def test_mistrals_templates_take_their_ids_back(
    demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch, tool_format: str
) -> None:
    """They refuse conversations with ids of another length."""
    url = await running.start(make_app(demo, tool_format=tool_format))

    async def chat(*_: Any, **__: Any) -> Scripted:
        return Scripted(f"{MISTRAL[:-1]}, {MISTRAL[13:]}")

    monkeypatch.setattr(demo, "chat", chat)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = await client.chat.completions.create(model="demo", messages=ASK, tools=[WEATHER])  # type: ignore[list-item]
        response = await client.responses.create(model="demo", input="x", tools=[{"type": "function", **WEATHER["function"]}])  # type: ignore[dict-item,list-item]  # fmt: skip
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none") as claude:
        tool: Any = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}  # type: ignore[index]
        message = await claude.messages.create(model="demo", max_tokens=9, messages=ASK, tools=[tool])
    ids = [one.id for one in answer.choices[0].message.tool_calls or ()]
    ids += [one.call_id for one in response.output if one.type == "function_call"]
    ids += [one.id for one in message.content if one.type == "tool_use"]
    assert len(set(ids)) == 6
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", one) for one in ids), ids


async def test_reasoning_is_known_by_the_tokens_for_it(demo: Engine) -> None:
    app = make_app(demo)
    app[STATE].opened(app[STATE].models["demo"])
    assert app[STATE].models["demo"].reasoning_format is REASONING_FORMATS["think"]


async def test_strict_tools_bind_the_arguments(demo: Engine, running: Running) -> None:
    """Free text may come, but a call has its tool's schema: the request says so to the engine."""
    url = await running.start(make_app(demo, tool_format="hermes"))
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        given: dict[str, Any] = {
            "model": "demo",
            "messages": ASK,
            "tools": [strict],
            "logit_bias": {},
            "max_tokens": 80,
        }
        for seed in range(4):
            answer = await client.chat.completions.create(**given, seed=seed, temperature=1.5)
            for call in answer.choices[0].message.tool_calls or ():
                if answer.choices[0].finish_reason == "tool_calls":
                    assert json.loads(call.function.arguments).keys() == {"city", "days"}  # type: ignore[union-attr]


async def test_a_failed_engine_is_not_healthy(demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    import aiohttp

    from asurge.errors import EngineDeadError

    url = await running.start(make_app(demo))
    async with aiohttp.ClientSession(url) as http:
        async with http.get("/health") as response:
            assert response.status == 200
        assert demo._life.pipeline is not None
        monkeypatch.setattr(demo._life.pipeline, "failure", EngineDeadError("secret"))
        for path in ("/health", "/readiness"):
            async with http.get(path) as response:
                assert response.status == 503
        async with http.get("/liveness") as response:
            assert response.status == 200
        async with http.post("/v1/completions", json={"prompt": "a"}) as response:
            assert response.status == 503
            assert "secret" not in await response.text()
