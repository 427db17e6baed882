"""What the engine is asked: conversations of all APIs, as chat templates know them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest

from asurge import Engine, SamplingParams
from asurge.server import ApiServer, make_app
from asurge.server.chat.request import template_messages
from asurge.server.schema.chat import Message
from asurge.structured import GuidedDecodingParams
from tests.server.chat import ASK, WEATHER
from tests.server.clients import CHAT
from tests.server.conftest import Running
from tests.server.scripted import Scripted


@dataclasses.dataclass
class Heard:
    """What the engine was asked last, and what it answers."""

    messages: Sequence[Any] = ()
    params: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    how: dict[str, Any] = dataclasses.field(default_factory=dict)
    answer: str = "Yes."

    @property
    def template_kwargs(self) -> dict[str, Any]:
        return self.how["template_kwargs"]

    @property
    def continues(self) -> bool:
        return self.how["continue_final_message"]

    @property
    def said(self) -> list[tuple[str, str | None]]:
        return [(one["role"], one["content"]) for one in self.messages]


@pytest.fixture
def heard(demo: Engine, monkeypatch: pytest.MonkeyPatch) -> Heard:
    """The demo model's engine only listens."""
    found = Heard()

    async def chat(messages: Any, params: SamplingParams, **how: Any) -> Scripted:
        found.messages, found.params, found.how = messages, params, how
        return Scripted(found.answer)

    monkeypatch.setattr(demo, "chat", chat)
    return found


async def post(http: aiohttp.ClientSession, path: str, **body: Any) -> Any:
    async with http.post(path, json=body) as response:
        told = await response.json()
        assert response.status == 200, told
        return told


async def test_a_developer_speaks_as_the_system(http: aiohttp.ClientSession, heard: Heard) -> None:
    """Templates that do not know the role leave out what it says, or refuse it."""
    rules = {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]}
    await post(http, CHAT, messages=[rules, *ASK, rules])
    assert heard.said == [("system", "Be brief."), ("user", ASK[0]["content"]), ("system", "Be brief.")]
    knows = "{% if message.role == 'developer' %}{{ message.content }}{% endif %}"
    (kept,) = template_messages([Message(role="developer", content="Be brief.")], knows)
    assert kept["role"] == "developer"


async def test_the_system_speaks_once_at_the_beginning(http: aiohttp.ClientSession, heard: Heard) -> None:
    first, second = {"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be polite."}
    wanted = [("system", "Be brief.\n\nBe polite."), ("user", "Hi")]
    await post(http, CHAT, messages=[first, second, {"role": "user", "content": "Hi"}])
    assert heard.said == wanted
    kept = await post(http, "/v1/responses", instructions="Be brief.", input=[second, {"role": "user", "content": "Hi"}])  # fmt: skip
    assert heard.said == wanted
    await post(http, "/v1/responses", input="And?", previous_response_id=kept["id"])
    assert heard.said == [("system", "Be polite."), ("user", "Hi"), ("assistant", "Yes."), ("user", "And?")]


async def test_what_is_wrong_keeps_its_place(http: aiohttp.ClientSession) -> None:
    rules, image = {"role": "system", "content": "Be brief."}, {"type": "image_url", "image_url": {"url": "x"}}
    async with http.post(CHAT, json={"messages": [rules, rules, {"role": "user", "content": [image]}]}) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, "messages[2].content[0]")


async def test_tools_that_are_not_told_bind_nothing(demo: Engine, running: Running, heard: Heard) -> None:
    url = await running.start(make_app(demo, tool_format="mistral"))
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    form = {"type": "json_object"}
    async with aiohttp.ClientSession(url) as http:
        await post(http, CHAT, messages=ASK, tools=[strict], tool_choice="none", response_format=form)
        assert heard.params.guided_decoding == GuidedDecodingParams(json_object=True)
        assert heard.params.skip_special_tokens


async def test_a_text_and_its_calls_are_one_turn(demo: Engine, running: Running, heard: Heard) -> None:
    url = await running.start(make_app(demo, tool_format="hermes"))
    heard.answer = 'Let me see. <tool_call>{"name": "get_weather", "arguments": {}}</tool_call>'
    tool = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
    async with aiohttp.ClientSession(url) as http:
        kept = await post(http, "/v1/responses", input="Well?", tools=[tool])
        call = kept["output"][1]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        wanted = [("user", "Well?"), ("assistant", "Let me see. "), ("tool", "sunny")]
        await post(http, "/v1/responses", input=[result], previous_response_id=kept["id"])
        assert heard.said == wanted
        assert heard.messages[1]["tool_calls"][0]["id"] == call["call_id"]
        await post(http, "/v1/responses", input=[{"role": "user", "content": "Well?"}, *kept["output"], result])
        assert heard.said == wanted
        more = {"role": "assistant", "content": "Soon."}
        await post(http, "/v1/responses", input=[{"role": "user", "content": "Well?"}, *kept["output"], more, result])
    assert heard.said == [("user", "Well?"), ("assistant", "Let me see. Soon."), ("tool", "sunny")]


async def test_what_was_said_is_named_by_its_id(demo: Engine, running: Running, heard: Heard) -> None:
    url = await running.start(make_app(demo, tool_format="hermes"))
    heard.answer = '<think>Hm.</think>Let me see. <tool_call>{"name": "get_weather", "arguments": {}}</tool_call>'
    tool, said = {"type": "function", **WEATHER["function"]}, {"role": "user", "content": "Well?"}  # type: ignore[dict-item]
    async with aiohttp.ClientSession(url) as http:
        kept = await post(http, "/v1/responses", input="Well?", tools=[tool])
        assert [item["type"] for item in kept["output"]] == ["reasoning", "message", "function_call"]
        named = [{"type": "item_reference", "id": item["id"]} for item in kept["output"]]
        result = {"type": "function_call_output", "call_id": kept["output"][2]["call_id"], "output": "sunny"}
        await post(http, "/v1/responses", input=[said, *named, result])
        assert heard.said == [("user", "Well?"), ("assistant", "Let me see. "), ("tool", "sunny")]
        assert heard.messages[1]["tool_calls"][0]["id"] == result["call_id"]
        forgotten = await post(http, "/v1/responses", input="Well?", store=False)
        for wrong in (
            named[0],
            {"type": "item_reference", "id": forgotten["output"][0]["id"]},
            {"type": "item_reference"},
        ):
            async with http.post("/v1/responses", json={"input": [named[0], wrong]}) as response:
                assert (response.status, (await response.json())["error"]["param"]) == (400, "input[1].id")
        await http.delete(f"/v1/responses/{kept['id']}")
        async with http.post("/v1/responses", json={"input": [named[0]]}) as response:
            assert response.status == 400


async def test_nobody_names_what_others_keep(demo: Engine, running: Running, heard: Heard) -> None:
    url = await running.start(ApiServer(demo, require_api_key=True, api_keys=["sk-first-key", "sk-other-key"]).app)
    first, other = ({"Authorization": f"Bearer sk-{name}-key"} for name in ("first", "other"))
    async with aiohttp.ClientSession(url, headers=first) as http:
        kept = await post(http, "/v1/responses", input="Well?")
        named = {"input": [{"type": "item_reference", "id": kept["output"][0]["id"]}]}
        for headers, status in ((first, 200), (other, 400)):
            async with http.post("/v1/responses", json=named, headers=headers) as response:
                assert response.status == status


REASON = {"type": "enabled", "budget_tokens": 1024}


async def test_anthropics_thinking_is_switched_and_bounded(http: aiohttp.ClientSession, heard: Heard) -> None:
    for thinking, switches, budget in (
        (REASON, {"enable_thinking": True}, 1024),
        ({"type": "disabled"}, {"enable_thinking": False}, None),
        ({"type": "adaptive"}, {}, None),
    ):
        await post(http, "/v1/messages", max_tokens=4, messages=ASK, thinking=thinking)
        assert (heard.template_kwargs, heard.params.thinking_budget) == (switches, budget)


async def test_thinking_needs_no_marks_of_the_model(tiny: Engine, running: Running) -> None:
    url = await running.start(make_app(tiny))
    assert not tiny.bounds_reasoning
    async with aiohttp.ClientSession(url) as http:
        await post(http, "/v1/messages", max_tokens=4, messages=ASK, thinking=REASON)


@pytest.mark.parametrize("kind", ["enabled", "disabled"])
async def test_what_requests_may_set_does_not_bind_the_server(demo: Engine, running: Running, heard: Heard, kind: str) -> None:  # fmt: skip
    url = await running.start(make_app(demo, template_kwargs=("mine",)))
    async with aiohttp.ClientSession(url) as http:
        await post(http, "/v1/messages", max_tokens=4, messages=ASK, thinking={"type": kind})
    assert heard.template_kwargs == {"enable_thinking": kind == "enabled"}


@pytest.mark.parametrize("block", [{"type": "thinking", "thinking": "Hm."}, {"type": "redacted_thinking", "data": "x"}])
async def test_a_turn_of_reasoning_alone_comes_back(http: aiohttp.ClientSession, block: dict[str, str]) -> None:
    said = [*ASK, {"role": "assistant", "content": [block]}, {"role": "user", "content": "Go on."}]
    await post(http, "/v1/messages", max_tokens=4, messages=said)


@pytest.mark.parametrize("given", [{"thinking": REASON}, {"thinking": {"type": "disabled"}}, {"output_config": {"effort": "low"}}])  # fmt: skip
async def test_counted_is_what_is_asked(http: aiohttp.ClientSession, given: dict[str, Any]) -> None:
    counted = await post(http, "/v1/messages/count_tokens", messages=ASK, **given)
    usage = (await post(http, "/v1/messages", max_tokens=1, messages=ASK, **given))["usage"]
    assert counted["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]


BEGUN = [*ASK, {"role": "assistant", "content": "Well,"}]


@pytest.mark.parametrize("given", [{}, {"add_generation_prompt": True}, {"add_generation_prompt": False}])
async def test_an_answer_is_asked_for_or_not(http: aiohttp.ClientSession, heard: Heard, given: dict[str, bool]) -> None:
    await post(http, CHAT, messages=BEGUN, continue_final_message=False, **given)
    assert (heard.how["add_generation_prompt"], heard.continues) == (given.get("add_generation_prompt", True), False)


async def test_an_answer_that_has_begun_is_continued(http: aiohttp.ClientSession, heard: Heard) -> None:
    for given in ({}, {"add_generation_prompt": False}):
        told = await post(http, CHAT, messages=BEGUN, continue_final_message=True, **given)
        assert heard.continues
        assert told["choices"][0]["message"]["content"] == "Yes."  # what is new, without what it begins with


async def test_anthropics_last_turn_may_be_the_beginning_of_the_answer(
    http: aiohttp.ClientSession, heard: Heard
) -> None:
    text, thought = {"type": "text", "text": "Well,"}, {"type": "thinking", "thinking": "Hm."}
    call = {"type": "tool_use", "id": "x", "name": "look", "input": {}}
    for content, continues in (("Well,", True), ([thought, text], True), ([thought], False), ([text, call], False)):
        await post(http, "/v1/messages", max_tokens=4, messages=[*ASK, {"role": "assistant", "content": content}])
        assert heard.continues == continues
    await post(http, "/v1/messages", max_tokens=4, messages=ASK)
    assert not heard.continues


@pytest.mark.parametrize(
    ("begun", "reasoning", "content"),
    [
        ("<think>Hm,", "so.", "Yes."),
        ("<think>Hm.</think>Well,", None, "so.</think>Yes."),
        ("Well,", None, "so.</think>Yes."),
    ],
)
async def test_reasoning_goes_on_where_it_was(
    http: aiohttp.ClientSession, heard: Heard, begun: str, reasoning: str | None, content: str
) -> None:
    heard.answer = "so.</think>Yes."
    messages = [*ASK, {"role": "assistant", "content": begun}]
    told = (await post(http, CHAT, messages=messages, continue_final_message=True))["choices"][0]["message"]
    assert (told.get("reasoning_content"), told["content"]) == (reasoning, content)
    assert told.get("reasoning") == reasoning  # vLLM's name


async def test_tokens_of_an_answer_that_has_begun(http: aiohttp.ClientSession, demo: Engine) -> None:
    async def text(**given: Any) -> str:
        tokens = (await post(http, "/tokenize", messages=BEGUN, **given))["tokens"]
        return demo.tokenizer.decode(tokens, skip_special_tokens=False)

    whole, begun = await text(add_generation_prompt=False), await text(continue_final_message=True)
    assert begun.endswith("Well,")
    assert whole.startswith(begun)
    assert (await text()).startswith(whole)
    assert len(whole) < len(await text())
    counted = await post(http, "/v1/messages/count_tokens", messages=BEGUN)
    assert counted["input_tokens"] == len(demo.tokenizer.encode(begun, add_special_tokens=False))


async def test_an_answer_is_as_long_as_its_logprobs_may_be(demo: Engine, running: Running, heard: Heard) -> None:
    """Where the request does not say how long it may be."""
    url, asked = await running.start(make_app(demo, max_request_logprobs=2100)), {"logprobs": True, "top_logprobs": 20}
    async with aiohttp.ClientSession(url) as http:
        for given, most in (
            (asked, 100),
            ({**asked, "n": 3}, 33),
            ({**asked, "n": 2, "min_tokens": 45}, 50),
            ({"logprobs": True, "n": 64}, 32),
            ({**asked, "max_tokens": 99}, 99),
            ({}, None),
        ):
            await post(http, CHAT, messages=ASK, **given)
            assert heard.params.max_tokens == most
        for given in ({**asked, "max_tokens": 101}, {**asked, "min_tokens": 101}, {**asked, "n": 64, "prompt_logprobs": 20}):  # fmt: skip
            async with http.post(CHAT, json={"messages": ASK, **given}) as response:
                assert (response.status, (await response.json())["error"]["param"]) == (400, "logprobs")
