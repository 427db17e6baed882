"""``/v1/chat/completions`` through OpenAI's own client: whole and streamed answers are the same."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import jsonschema
import openai
import pytest
from anyio import to_thread

from asurge import Engine, SamplingParams
from tests.server.chat import ASK, WEATHER, merged, whole

OTHER = {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}  # fmt: skip


async def create(client: openai.AsyncOpenAI, **given: Any) -> Any:
    return await client.chat.completions.create(**{"model": "demo", "messages": ASK, "temperature": 0, **given})


async def chunks(client: openai.AsyncOpenAI, **given: Any) -> list[Any]:
    return [chunk async for chunk in await create(client, stream=True, **given)]


async def test_an_answer_is_the_engines(client: openai.AsyncOpenAI, demo: Engine) -> None:
    answer = await create(client)
    wanted = await demo.chat(ASK, SamplingParams(temperature=0, max_tokens=None))
    assert answer.choices[0].message.content == wanted.get_text()
    assert (answer.choices[0].finish_reason, answer.model, answer.object) == ("stop", "demo", "chat.completion")
    assert answer.usage.prompt_tokens == len(wanted.prompt_token_ids)
    assert answer.usage.completion_tokens == wanted.num_generated_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("given", [{}, {"max_tokens": 3}, {"max_completion_tokens": 3}, {"stop": [" root"]}, {"n": 3, "temperature": 1.5, "seed": 7}])  # fmt: skip
async def test_a_stream_says_the_same(client: openai.AsyncOpenAI, given: dict[str, Any]) -> None:
    answer, parts = await create(client, **given), await chunks(client, **given)
    for choice in answer.choices:
        assert merged(parts, choice.index) == whole(choice)
        own = [one for part in parts for one in part.choices if one.index == choice.index]
        assert own[0].delta.role == "assistant"
        assert sum(one.delta.role is not None for one in own) == 1
        assert [one.finish_reason for one in own if one.finish_reason] == [choice.finish_reason]
        assert own[-1].finish_reason is not None
    assert len({part.id for part in parts}) == 1


async def test_usage_in_streams(client: openai.AsyncOpenAI) -> None:
    answer = await create(client)
    assert all(part.usage is None for part in await chunks(client))
    told = await chunks(client, stream_options={"include_usage": True})
    assert [part.usage is None for part in told] == [True] * (len(told) - 1) + [False]
    assert (told[-1].choices, told[-1].usage.total_tokens) == ([], answer.usage.total_tokens)
    always = await chunks(client, stream_options={"include_usage": True, "continuous_usage_stats": True})
    silent = await chunks(client, stream_options={"continuous_usage_stats": True})
    assert all(part.usage is None for part in silent)
    counts = [part.usage.completion_tokens for part in always]
    assert (always[0].choices[0].delta.role, counts[0]) == ("assistant", 0)  # no token has been made
    assert counts[1] > 0
    assert counts == sorted(counts)
    assert counts[-1] == answer.usage.completion_tokens


async def test_token_ids(demo: Engine, client: openai.AsyncOpenAI) -> None:
    given: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "extra_body": {"return_token_ids": True, "return_tokens_as_token_ids": True}}  # fmt: skip
    answer = await create(client, **given)
    choice: Any = answer.choices[0]
    assert len(choice.token_ids) == answer.usage.completion_tokens
    assert demo.tokenizer.decode(choice.token_ids, skip_special_tokens=True) == choice.message.content
    assert len(answer.prompt_token_ids) == answer.usage.prompt_tokens
    assert [one.token for one in choice.logprobs.content] == [f"token_id:{one}" for one in choice.token_ids]
    assert all(top.token.startswith("token_id:") for one in choice.logprobs.content for top in one.top_logprobs)
    for more in (given, {"extra_body": {"return_token_ids": True}}):
        parts: Any = await chunks(client, **more)
        assert parts[0].prompt_token_ids == answer.prompt_token_ids
        assert [one for part in parts for one in getattr(part.choices[0], "token_ids", ())] == choice.token_ids
    assert not hasattr((await create(client)).choices[0], "token_ids")


async def test_the_bytes_of_a_stream(http: aiohttp.ClientSession) -> None:
    body = {"messages": ASK, "temperature": 0, "stream": True}
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert response.headers["X-Request-Id"]
        events = (await response.read()).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert all(event.startswith(b"data: {") for event in events[:-2])
    first = json.loads(events[0][6:])
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "usage" not in first


async def test_logprobs(client: openai.AsyncOpenAI) -> None:
    answer = await create(client, logprobs=True, top_logprobs=3, max_tokens=4)
    told = answer.choices[0].logprobs.content
    assert "".join(one.token for one in told) == answer.choices[0].message.content
    assert all(len(one.top_logprobs) == 3 and one.top_logprobs[0].logprob == one.logprob for one in told)
    assert all(bytes(one.bytes).decode() == one.token for one in told)
    parts = await chunks(client, logprobs=True, top_logprobs=3, max_tokens=4)
    streamed = [one for part in parts for choice in part.choices if choice.logprobs for one in choice.logprobs.content]
    assert streamed == told
    none = await create(client, logprobs=True, max_tokens=2)
    assert [one.top_logprobs for one in none.choices[0].logprobs.content] == [[], []]


async def test_forms(client: openai.AsyncOpenAI) -> None:
    schema = WEATHER["function"]["parameters"]
    for given in ({"response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": schema}}}, {"extra_body": {"guided_json": schema}}, {"extra_body": {"structured_outputs": {"json": schema}}}):  # fmt: skip
        answer = await create(client, temperature=1.3, seed=3, max_tokens=200, **given)
        jsonschema.validate(json.loads(answer.choices[0].message.content), schema)
    answer = await create(client, extra_body={"guided_choice": ["yes", "no"]})
    assert answer.choices[0].message.content in ("yes", "no")
    answer = await create(client, response_format={"type": "text"})
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("seed", range(3))
async def test_forced_calls(client: openai.AsyncOpenAI, choice: Any, seed: int) -> None:
    given = {"tools": [WEATHER, OTHER], "tool_choice": choice, "temperature": 1.0, "seed": seed, "max_tokens": 300}
    answer = (await create(client, **given)).choices[0]
    if answer.finish_reason == "length":
        pytest.skip("this seed goes on for ever")
    assert answer.finish_reason == "tool_calls"
    assert answer.message.tool_calls
    for call in answer.message.tool_calls:
        assert call.function.name in ("get_weather", "stop")
        assert call.id.startswith("call_")
        if call.function.name == "get_weather":
            jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])
    if choice != "required":
        assert [call.function.name for call in answer.message.tool_calls] == ["get_weather"]
    assert merged(await chunks(client, **given)) == whole(answer)


async def test_the_old_form_of_tools(client: openai.AsyncOpenAI) -> None:
    given = {"functions": [WEATHER["function"]], "function_call": {"name": "get_weather"}, "max_tokens": 200}
    answer = (await create(client, **given)).choices[0]
    assert answer.finish_reason == "function_call"
    assert answer.message.function_call.name == "get_weather"
    json.loads(answer.message.function_call.arguments)


async def test_a_conversation_with_calls_goes_on(client: openai.AsyncOpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome", "days": 2}'}}  # fmt: skip
    said = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]  # fmt: skip
    answer = await create(client, messages=said, tools=[WEATHER], max_tokens=8)
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


async def test_content_may_come_in_parts(client: openai.AsyncOpenAI) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "What does math"}, {"type": "text", "text": ".sqrt do?"}]}]  # fmt: skip
    assert (await create(client, messages=parts)).choices[0].message.content == (await create(client)).choices[0].message.content  # fmt: skip


async def test_the_synchronous_client(url: str, client: openai.AsyncOpenAI) -> None:
    wanted = (await create(client)).choices[0].message.content

    def ask() -> tuple[Any, str]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as plain:
            answer = plain.chat.completions.create(model="demo", messages=ASK, temperature=0)
            stream = plain.chat.completions.create(model="gpt-4o-mini", messages=ASK, temperature=0, stream=True)
            return answer.choices[0].message.content, "".join(part.choices[0].delta.content or "" for part in stream)

    assert await to_thread.run_sync(ask) == (wanted, wanted)


async def test_the_client_over_aiohttp(url: str, client: openai.AsyncOpenAI) -> None:
    wanted = (await create(client)).choices[0].message.content
    own = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", http_client=openai.DefaultAioHttpClient())
    async with own:
        assert merged(await chunks(own))["content"] == wanted


async def test_parsed_answers_of_the_client(client: openai.AsyncOpenAI) -> None:
    from pydantic import BaseModel, Field

    class Weather(BaseModel):
        city: str = Field(max_length=8)
        days: int = Field(ge=1, le=9)

    answer = await client.chat.completions.parse(
        model="demo", messages=ASK, response_format=Weather, max_tokens=200, temperature=1.0, seed=1
    )
    assert isinstance(answer.choices[0].message.parsed, Weather)


@pytest.mark.parametrize("effort", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
async def test_every_effort_of_the_client(client: openai.AsyncOpenAI, effort: str) -> None:
    assert (await create(client, reasoning_effort=effort, max_tokens=1)).choices
    assert (await client.responses.create(model="demo", input="Hi", reasoning={"effort": effort}, max_output_tokens=1)).id  # type: ignore[typeddict-item]  # fmt: skip
