"""``/v1/messages`` through Anthropic's own client: whole and streamed answers are the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from asurge.errors import DeadlineExceededError
from asurge.server.errors import failure_of
from tests.server.chat import ASK

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
async def claude(url: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def asked(temperature: float = 0.0, **given: Any) -> dict[str, Any]:
    """The newest clients know no temperature, the API does."""
    return {"model": "demo", "max_tokens": 64, "messages": ASK, "extra_body": {"temperature": temperature}, **given}


async def create(claude: anthropic.AsyncAnthropic, **given: Any) -> Any:
    return await claude.messages.create(**asked(**given))


async def test_the_answer_is_that_of_chat(claude: anthropic.AsyncAnthropic, client: openai.AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(model="demo", messages=ASK, temperature=0, max_tokens=64)
    answer = await create(claude)
    assert answer.content[0].text == chat.choices[0].message.content
    assert (answer.role, answer.type, answer.stop_reason, answer.model) == ("assistant", "message", "end_turn", "demo")
    assert chat.usage is not None
    used = answer.usage
    assert used.input_tokens + used.cache_read_input_tokens == chat.usage.prompt_tokens
    assert used.output_tokens == chat.usage.completion_tokens


@pytest.mark.parametrize("given", [{}, {"max_tokens": 3}, {"stop_sequences": [" root"]}, {"system": [{"type": "text", "text": "Be brief."}]}, {"tools": [WEATHER], "tool_choice": {"type": "any"}, "temperature": 1.0}])  # fmt: skip
async def test_a_stream_says_the_same(claude: anthropic.AsyncAnthropic, given: dict[str, Any]) -> None:
    answer = await create(claude, **given)
    kinds = []
    async with claude.messages.stream(**asked(**given)) as stream:
        async for event in stream:
            kinds.append(event.type)
        streamed = await stream.get_final_message()
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    if given.get("temperature"):
        assert streamed.content[0].type == answer.content[0].type == "tool_use"
        return
    assert [block.model_dump(exclude={"id"}) for block in streamed.content] == [block.model_dump(exclude={"id"}) for block in answer.content]  # fmt: skip
    assert (streamed.stop_reason, streamed.stop_sequence) == (answer.stop_reason, answer.stop_sequence)
    assert streamed.usage.output_tokens == answer.usage.output_tokens


async def test_why_it_ended(claude: anthropic.AsyncAnthropic) -> None:
    assert (await create(claude, max_tokens=2)).stop_reason == "max_tokens"
    answer = await create(claude, stop_sequences=[" root"])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " root")
    called = await create(claude, tools=[WEATHER], tool_choice={"type": "tool", "name": "get_weather"})
    assert called.stop_reason == "tool_use"
    assert called.content[0].name == "get_weather"
    assert set(called.content[0].input) == {"city"}


async def test_a_conversation_with_tools_goes_on(claude: anthropic.AsyncAnthropic) -> None:
    used = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}]}
    said = [*ASK, {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, used]}, {"role": "user", "content": [result, {"type": "text", "text": "Well?"}]}]  # fmt: skip
    answer = await create(claude, messages=said, tools=[WEATHER])
    assert answer.stop_reason in ("end_turn", "max_tokens", "tool_use")
    counted = await claude.messages.count_tokens(model="demo", messages=said, tools=[WEATHER])  # type: ignore[arg-type,list-item]
    assert counted.input_tokens == answer.usage.input_tokens + answer.usage.cache_read_input_tokens


async def test_tools_that_may_not_be_used_are_not_counted(claude: anthropic.AsyncAnthropic) -> None:
    given: Any = {"messages": ASK, "tools": [WEATHER], "tool_choice": {"type": "none"}}
    answer = await create(claude, **given)
    counted = await claude.messages.count_tokens(model="demo", **given)
    assert counted.input_tokens == answer.usage.input_tokens + answer.usage.cache_read_input_tokens


async def test_errors_have_its_shape(claude: anthropic.AsyncAnthropic, http: aiohttp.ClientSession) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        await create(claude, model="claude-9")
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index,call-overload]
    assert missing.value.request_id
    image = {"type": "image", "source": {"type": "url", "url": "http://localhost/x"}}
    with pytest.raises(anthropic.BadRequestError, match="image"):
        await create(claude, messages=[{"role": "user", "content": [image]}])
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        await create(claude, temperature=-1)
    async with http.post("/v1/messages", json={"messages": ASK}) as response:
        told = await response.json()
        assert (response.status, told["type"], told["error"]["type"]) == (400, "error", "invalid_request_error")
        assert "max_tokens" in told["error"]["message"]


async def test_an_answer_with_a_form(claude: anthropic.AsyncAnthropic) -> None:
    schema = WEATHER["input_schema"]
    answer = await create(claude, output_config={"format": {"type": "json_schema", "schema": schema}}, temperature=1.0)
    assert set(json.loads(answer.content[0].text)) == {"city"}


async def test_the_system_may_speak_within_a_conversation(claude: anthropic.AsyncAnthropic) -> None:
    said = [*ASK, {"role": "system", "content": "Be brief."}, *ASK]
    assert (await create(claude, messages=said)).stop_reason


def test_a_deadline_that_passes() -> None:
    told = failure_of(DeadlineExceededError("late")).anthropic("x")
    assert json.loads(told)["error"]["type"] == "timeout_error"
