"""``/v1/responses`` through OpenAI's own client: whole and streamed answers are the same, and are kept."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import openai
import pytest

from asurge import Engine
from asurge.errors import DeadlineExceededError
from asurge.server import ApiServer
from asurge.server.keys import ApiKey, KeyRing
from asurge.server.openai import response_store as store_module
from asurge.server.openai.response_store import ResponseStore
from asurge.server.schema.chat import Message
from tests.server.chat import WEATHER
from tests.server.conftest import Running
from tests.server.scripted import Scripted

ASK = "What does math.sqrt do?"
TOOL: Any = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]


async def create(client: openai.AsyncOpenAI, **given: Any) -> Any:
    return await client.responses.create(**{"model": "demo", "input": ASK, "temperature": 0, **given})


def plain(response: Any) -> Any:
    """Without what differs from one time to the next, and what the client adds."""
    dumped = response.model_dump(mode="json", exclude={"id", "created_at"}, warnings=False)
    dumped["usage"].pop("input_tokens_details")
    for item in dumped["output"]:
        for name in ("id", "call_id", "parsed_arguments"):
            item.pop(name, None)
        for part in item.get("content") or ():
            part.pop("parsed", None)
    return dumped


async def test_the_answer_is_that_of_chat(client: openai.AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": ASK}], temperature=0
    )
    answer = await create(client)
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.status, answer.object, answer.model) == ("completed", "response", "demo")
    assert chat.usage is not None
    assert answer.usage.total_tokens == chat.usage.total_tokens


@pytest.mark.parametrize("given", [{}, {"max_output_tokens": 3}, {"instructions": "Be brief."}, {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}])  # fmt: skip
async def test_a_stream_says_the_same(client: openai.AsyncOpenAI, given: dict[str, Any]) -> None:
    answer = await create(client, **given)
    kinds, numbers, texts = list[str](), list[int](), ""
    async with client.responses.stream(**{"model": "demo", "input": ASK, "temperature": 0, **given}) as stream:
        async for event in stream:
            kinds.append(event.type)
            numbers.append(event.sequence_number)
            texts += event.delta if event.type == "response.output_text.delta" else ""
            last = event
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == ("response.incomplete" if given.get("max_output_tokens") else "response.completed")
    assert numbers == sorted(set(numbers))
    assert plain(last.response) == plain(answer)  # type: ignore[attr-defined]
    assert texts == answer.output_text
    for begun, ended in (("response.output_item.added", "response.output_item.done"), ("response.content_part.added", "response.content_part.done")):  # fmt: skip
        assert kinds.count(begun) == kinds.count(ended)


async def test_calls_and_what_they_brought(client: openai.AsyncOpenAI) -> None:
    answer = await create(
        client, tools=[TOOL], tool_choice={"type": "function", "name": "get_weather"}, temperature=1.0
    )
    call = answer.output[0]
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert set(json.loads(call.arguments)) == {"city", "days"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    again = await create(client, input=[{"role": "user", "content": ASK}, call.model_dump(exclude_none=True), result])
    kept = await create(client, input=[result], previous_response_id=answer.id)
    assert again.output_text == kept.output_text
    assert again.usage.input_tokens == kept.usage.input_tokens


async def test_forms(client: openai.AsyncOpenAI) -> None:
    schema = TOOL["parameters"]
    form: Any = {"format": {"type": "json_schema", "name": "weather", "schema": schema}}
    answer = await create(client, text=form, temperature=1.0, max_output_tokens=200)
    assert set(json.loads(answer.output_text)) == {"city", "days"}


async def test_answers_are_kept_and_forgotten(client: openai.AsyncOpenAI) -> None:
    answer = await create(client, metadata={"a": "b"})
    found = await client.responses.retrieve(answer.id)
    assert found == answer
    assert found.metadata == {"a": "b"}
    more = await create(client, input="And?", previous_response_id=answer.id)
    said: Any = [{"role": "user", "content": ASK}, {"role": "assistant", "content": answer.output_text}, {"role": "user", "content": "And?"}]  # fmt: skip
    assert more.usage.input_tokens == (await create(client, input=said)).usage.input_tokens
    again = await client.responses.create(model="demo", previous_response_id=answer.id, max_output_tokens=16)
    assert again.usage is not None
    with pytest.raises(openai.BadRequestError, match="input is empty"):
        await client.responses.create(model="demo")
    await client.responses.delete(answer.id)
    for call in (client.responses.retrieve(answer.id), create(client, previous_response_id=answer.id)):
        with pytest.raises(openai.NotFoundError):
            await call
    unkept = await create(client, store=False)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(unkept.id)


@pytest.mark.parametrize("given", [{"include": ["message.output_text.logprobs"]}, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"top_logprobs": 2}])  # fmt: skip
async def test_logprobs_are_those_of_chat(client: openai.AsyncOpenAI, given: dict[str, Any]) -> None:
    top = given.get("top_logprobs", 0)
    chat = await client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": ASK}], temperature=0, logprobs=True, top_logprobs=top
    )
    assert chat.choices[0].logprobs is not None
    wanted = [one.model_dump() for one in chat.choices[0].logprobs.content or ()]
    assert len(wanted) > 3
    assert all(len(one["top_logprobs"]) == top for one in wanted)
    answer = await create(client, **given)
    assert [one.model_dump() for one in answer.output[0].content[0].logprobs] == wanted
    streamed = list[Any]()
    async with await client.responses.create(model="demo", input=ASK, temperature=0, stream=True, **given) as stream:
        async for event in stream:
            if event.type == "response.output_text.delta":
                streamed += event.logprobs
            elif event.type == "response.completed":
                final = event.response
    assert [one.model_dump() for one in final.output[0].content[0].logprobs] == wanted
    assert [one.token for one in streamed] == [one["token"] for one in wanted][: len(streamed)]
    assert len(streamed) >= len(wanted) - 1  # the token that ends the text has none


async def test_without_wish_there_are_no_logprobs(client: openai.AsyncOpenAI) -> None:
    answer = await create(client, include=["reasoning.encrypted_content"])
    assert answer.output[0].content[0].logprobs == []


async def test_input_items_of_a_kept_answer(client: openai.AsyncOpenAI) -> None:
    said: Any = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}, {"role": "user", "content": [{"type": "input_text", "text": "Three"}]}]  # fmt: skip
    answer = await create(client, input=said)
    oldest = [item async for item in client.responses.input_items.list(answer.id, order="asc", limit=1)]
    assert [item.content[0].text for item in oldest] == ["One", "Two", "Three"]  # type: ignore[union-attr]
    newest = [item async for item in client.responses.input_items.list(answer.id)]
    assert newest == oldest[::-1]
    plain_input = await create(client)
    (only,) = [item async for item in client.responses.input_items.list(plain_input.id)]
    assert only.content[0].text == ASK  # type: ignore[union-attr]
    for wrong in ({"after": "x"}, {"order": "up"}, {"limit": 0}, {"limit": 101}):
        with pytest.raises(openai.BadRequestError):
            await client.responses.input_items.list(answer.id, **wrong)  # type: ignore[arg-type]
    with pytest.raises(openai.NotFoundError):
        await client.responses.input_items.list("resp_none")


async def test_only_background_responses_can_be_cancelled(client: openai.AsyncOpenAI) -> None:
    answer = await create(client)
    with pytest.raises(openai.BadRequestError, match="background"):
        await client.responses.cancel(answer.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.cancel("resp_none")


@pytest.mark.parametrize("given", [{}, {"instructions": "Be brief."}, {"tools": [TOOL]}])
async def test_input_tokens_are_those_of_the_usage(client: openai.AsyncOpenAI, given: dict[str, Any]) -> None:
    answer = await create(client, **given)
    counted = await client.responses.input_tokens.count(model="demo", input=ASK, **given)
    assert counted.input_tokens == answer.usage.input_tokens
    more = await create(client, input="And?", previous_response_id=answer.id, **given)
    counted = await client.responses.input_tokens.count(model="demo", input="And?", previous_response_id=answer.id, **given)  # fmt: skip
    assert counted.input_tokens == more.usage.input_tokens


async def test_nobody_reads_what_others_keep(demo: Engine, running: Running) -> None:
    url = await running.start(ApiServer(demo, require_api_key=True, api_keys=["sk-first-key", "sk-other-key"]).app)
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-first-key") as first,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-other-key") as other,
    ):
        answer = await create(first)
        assert (await first.responses.retrieve(answer.id)).id == answer.id
        for call in (other.responses.retrieve(answer.id), other.responses.input_items.list(answer.id), other.responses.cancel(answer.id), other.responses.delete(answer.id), create(other, previous_response_id=answer.id)):  # fmt: skip
            with pytest.raises(openai.NotFoundError):
                await call


@pytest.mark.parametrize("said", [[], ["Yes."]])
async def test_a_failure_comes_behind_the_beginning(
    demo: Engine, client: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """The client takes no other event first."""

    async def chat(*_: Any, **__: Any) -> Scripted:
        return Scripted(*said, DeadlineExceededError("late"))

    monkeypatch.setattr(demo, "chat", chat)
    async with client.responses.stream(model="demo", input=ASK) as stream:
        events = [event async for event in stream]
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0].response.status == "in_progress"  # type: ignore[union-attr]
    assert (events[-1].type, events[-1].response.status) == ("response.failed", "failed")  # type: ignore[union-attr]
    assert [event.sequence_number for event in events] == [*range(len(events))]


def test_the_store_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    store, owner = ResponseStore(3), KeyRing().anonymous
    for at in range(5):
        store.put(str(at), b"x" * 100, [Message(role="user", content="a")], owner)
    assert [at for at in range(5) if _has(store, str(at))] == [2, 3, 4]
    monkeypatch.setattr(store_module, "STORED_BYTES", 600)
    store.put("5", b"x" * 300, [], owner)
    assert [at for at in range(6) if _has(store, str(at))] == [4, 5]


def test_nobody_pushes_out_what_others_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much is taken from who holds most: in number, or in bytes."""
    ring = KeyRing()
    first, other = ring.add("sk-first-key"), ring.add("sk-other-key")
    store = ResponseStore(4)
    for at in range(2):
        store.put(f"a{at}", b"x" * 100, [], first)
    for at in range(8):
        store.put(f"b{at}", b"x" * 100, [], other)
    assert [name for name in ("a0", "a1") if _has(store, name, first)] == ["a0", "a1"]
    assert [at for at in range(8) if _has(store, f"b{at}", other)] == [6, 7]
    store.put("a2", b"x" * 100, [], first)
    assert [at for at in range(3) if _has(store, f"a{at}", first)] == [1, 2]
    monkeypatch.setattr(store_module, "STORED_BYTES", 1000)
    store.delete("b6", other)
    store.put("b8", b"x" * 700, [], other)
    assert [at for at in range(4) if _has(store, f"a{at}", first)] == [1, 2]
    assert [at for at in range(9) if _has(store, f"b{at}", other)] == [8]


def _has(store: ResponseStore, name: str, owner: ApiKey | None = None) -> bool:
    try:
        store.get(name, owner or KeyRing().anonymous)
    except Exception:
        return False
    return True


async def test_refused(client: openai.AsyncOpenAI) -> None:
    image: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": "http://localhost/x"}]}]
    for given, param in (
        ({"input": image}, "input[0].content[0]"),
        ({"input": [{"type": "message", "content": "Hi"}]}, "input[0].role"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"temperature": -1}, "temperature"),
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            await create(client, **given)
        assert raised.value.param == param


@pytest.mark.parametrize("value", ["1" * 30, '{"a":' * 300 + "1" + "}" * 300])
async def test_what_is_told_back_is_any_json(url: str, value: str) -> None:
    body = '{"input": "a", "max_output_tokens": 1, "stream": true, "tools": [{"type": "function", "name": "a", "parameters": {"default": %s}}]}'  # fmt: skip
    async with (
        aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=10)) as http,
        http.post("/v1/responses", data=body % value) as response,
    ):
        text = await response.text()
    assert "event: response.incomplete" in text
