"""Which tools the model is told of and may call, and what binds its calls and its words."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import jsonschema
import msgspec
import pytest

from asurge import Engine
from asurge.parsing import TOOL_FORMATS
from asurge.server import make_app
from asurge.server.chat.tools import bound_form, tool_use
from asurge.server.schema.chat import ChatCompletionRequest
from asurge.structured import GuidedDecodingParams
from tests.server.chat import ASK, WEATHER
from tests.server.clients import CHAT
from tests.server.conftest import Running

STOP = {"type": "function", "function": {"name": "stop"}}
STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
OTHERS: list[Any] = [
    {"type": "custom"},
    {"type": "web_search"},
    {"type": "namespace", "name": "mcp", "tools": []},
    {"type": "local_shell"},
    {"type": "image_generation"},
]
FORM = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}}}  # fmt: skip


def asked(**given: Any) -> ChatCompletionRequest:
    return msgspec.convert({"messages": ASK, "tools": [WEATHER, STOP], **given}, ChatCompletionRequest)


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str | None, *names: str) -> dict[str, Any]:
    return {"mode": mode, "tools": [named(name) for name in names]}


ONE = {"type": "function", "name": "stop"}
BOTH = ["get_weather", "stop"]
CHOICES: dict[str, tuple[Any, list[str], list[str]]] = {
    "nothing": (None, BOTH, []),
    "auto": ("auto", BOTH, []),
    "auto as a type": ({"type": "auto"}, BOTH, []),
    "none as a type": ({"type": "none"}, [], []),
    "required as a type": ({"type": "required"}, BOTH, BOTH),
    "one": (named("stop"), BOTH, ["stop"]),
    "one, as responses write it": (ONE, BOTH, ["stop"]),
    "some": ({"type": "allowed_tools", "allowed_tools": allowed("auto", "stop")}, ["stop"], []),
    "some, of which one must be called": ({"type": "allowed_tools", "allowed_tools": allowed("required", "stop")}, ["stop"], ["stop"]),
    "some, as responses write it": ({"type": "allowed_tools", "mode": "required", "tools": [ONE, {"type": "web_search"}]}, ["stop"], ["stop"]),
    "some, without a mode": ({"type": "allowed_tools", "tools": [ONE]}, ["stop"], []),
    "some, but none": ({"type": "allowed_tools", "tools": []}, [], []),
}  # fmt: skip


@pytest.mark.parametrize("case", CHOICES)
def test_choices(case: str) -> None:
    choice, told, forced = CHOICES[case]
    use = tool_use(asked(tool_choice=choice))
    assert [one["function"]["name"] for one in use.tools or ()] == told
    assert [one["function"]["name"] for one in use.forced] == forced
    assert use.parallel == (forced != ["stop"] or "allowed_tools" in str(choice))


def test_tools_of_other_kinds_are_left_out() -> None:
    use = tool_use(asked(tools=[*OTHERS, WEATHER]))
    assert [one["function"]["name"] for one in use.tools or ()] == ["get_weather"]
    assert tool_use(asked(tools=OTHERS)).tools is None


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("other", OTHERS, ids=[one["type"] for one in OTHERS])
async def test_others_do_not_refuse_a_conversation(http: aiohttp.ClientSession, path: str, other: Any) -> None:
    function: Any = WEATHER if path == CHAT else {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
    if path == "/v1/messages":
        function = {"name": "get_weather", "input_schema": {"type": "object"}}
        other = {"type": f"{other['type']}_20250305", "name": other["type"]}
    body = {"input": "Hi"} if path == "/v1/responses" else {"messages": ASK}
    async with http.post(
        path, json={**body, "tools": [function, other], "max_tokens": 1, "max_output_tokens": 1}
    ) as response:
        assert response.status == 200, await response.text()


def test_a_form_binds_words_and_schemas_bind_calls() -> None:
    form, fmt = {"json": {"const": 1}}, TOOL_FORMATS["hermes"]
    forced = bound_form(form, fmt, tool_use(asked(tool_choice="required")))
    assert forced.keys() == {"grammar"}
    either = bound_form(form, fmt, tool_use(asked(tools=[STRICT, STOP])))
    assert either["json"] == form["json"]
    assert '"city"' in either["alternative"]
    assert '"city"' not in bound_form(form, fmt, tool_use(asked()))["alternative"]  # not strict: any arguments
    assert bound_form({}, fmt, tool_use(asked())) == {}
    assert bound_form({}, fmt, tool_use(asked(tools=[STRICT]))).keys() == {"structural_tag"}
    own = {"structures": [{"begin": "<a>", "schema": {}, "end": ""}], "triggers": ["<a>"]}
    tags = bound_form({"structural_tag": own}, fmt, tool_use(asked(tools=[STRICT])))["structural_tag"]
    assert tags["triggers"] == ["<a>", "<tool_call>"]
    assert len(tags["structures"]) == 2
    assert bound_form({"structural_tag": own}, fmt, tool_use(asked())) == {"structural_tag": own}
    GuidedDecodingParams(**either)


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "pythonic", "mistral"])
@pytest.mark.parametrize("tool", [WEATHER, STRICT], ids=["free", "strict"])
async def test_a_form_beside_tools(demo: Engine, running: Running, name: str, tool: Any) -> None:
    """An answer is a call, or has the form."""
    url = await running.start(make_app(demo, tool_format=name))
    said, mark = set[str](), demo.tokenizer.encode("<tool_call>", add_special_tokens=False)
    unmarked = {str(mark[0]): -100}  # the demo model likes to call
    async with aiohttp.ClientSession(url) as http:
        for seed in range(8):
            bias = unmarked if seed % 2 else {}
            body = {"logit_bias": bias, "messages": ASK, "tools": [tool], "response_format": FORM, "seed": seed, "temperature": 2.0, "max_tokens": 200}  # fmt: skip
            async with http.post(CHAT, json=body) as response:
                told = await response.json()
                assert response.status == 200, told
            choice = told["choices"][0]
            if choice["finish_reason"] == "length":
                continue
            said.add(choice["finish_reason"])
            if choice["finish_reason"] == "stop":
                jsonschema.validate(json.loads(choice["message"]["content"]), FORM["json_schema"]["schema"])  # type: ignore[index]
            for call in choice["message"].get("tool_calls") or ():
                assert choice["message"]["content"] is None
                if tool is STRICT:
                    jsonschema.validate(json.loads(call["function"]["arguments"]), WEATHER["function"]["parameters"])  # type: ignore[index]
    assert said <= {"stop", "tool_calls"}
    assert said if name == "llama3_json" else "stop" in said  # there, what the demo model writes begins like a call


@pytest.mark.parametrize("most", range(1, 24))
async def test_what_is_cut_off_a_forced_call_is_no_content(http: aiohttp.ClientSession, most: int) -> None:
    for stream in (False, True):
        body = {"messages": ASK, "tools": [STOP, WEATHER], "tool_choice": "required", "max_tokens": most, "seed": 1, "stream": stream}  # fmt: skip
        async with http.post(CHAT, json=body) as response:
            text = await response.text()
        if stream:
            chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            said = "".join(one["delta"].get("content") or "" for chunk in chunks for one in chunk["choices"])
        else:
            said = json.loads(text)["choices"][0]["message"]["content"] or ""
        assert said == ""
