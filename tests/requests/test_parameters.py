"""Hostile and mistaken parameters: each is refused by name, before any device work."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asurge import Engine, SamplingParams
from asurge.errors import InvalidRequestError
from tests.idle import settle

NUMBERS = {
    "temperature": (-1e-9, 100.1), "top_p": (-0.1, 0.0, 1.01), "min_p": (-0.1, 1.01), "typical_p": (-0.1, 0.0, 1.01),
    "presence_penalty": (-2.01, 2.01), "frequency_penalty": (-2.01, 2.01), "repetition_penalty": (-1.0, 0.0, 1e9),
}  # fmt: skip
INTEGERS = {
    "n": (0, -1, 65, 10**9), "best_of": (0, 65), "max_tokens": (0, -1), "min_tokens": (-1, 129), "top_k": (-2,),
    "seed": (-1, 2**63), "logprobs": (-1, 21, 10**9), "prompt_logprobs": (-1, 21, 10**9), "repetition_stop": (0, 1, 2**20 + 1, 2**58 + 1, 2**70),
    "thinking_budget": (-1,), "truncate_prompt_tokens": (0, -2),
}  # fmt: skip
STRINGS = {
    "stop": (["a", ""], [1], 7, ["x"] * 65),
    "bad_words": ([""], [1], 7, ["x"] * 257, ["x" * 1001], ["a", "\ud800"]),
}
TOKENS = {"stop_token_ids": ([-1], ["1"], [1.5], [True], "12", 5), "allowed_token_ids": ([], [-1], ["1"], 5)}
OTHERS = {
    "logit_bias": ([1, 2], {-1: 0.0}, {1: 101.0}, {1: math.nan}, {"a": 1.0}, {"9" * 400: "1"}, {t: 0.0 for t in range(1025)}),
    "logits_processors": ([1], {"a": math.inf}, {"a": "1"}), "output_kind": ("all", None), "echo": (1, "yes"),
    "detokenize": (0,), "ignore_eos": (1,), "guided_decoding": ({"json": {}}, "json"),
}  # fmt: skip
NO_NUMBERS = (math.nan, math.inf, -math.inf, "1", None, True, [1])


def cases() -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for field, values in NUMBERS.items():
        found += [(field, value) for value in (*values, *NO_NUMBERS)]
    for field, values in INTEGERS.items():
        found += [(field, value) for value in (*values, 1.5, "1", True, math.nan, [1])]
    for group in (STRINGS, TOKENS, OTHERS):
        found += [(field, value) for field, values in group.items() for value in values]
    return found


@pytest.mark.parametrize(("field", "value"), cases(), ids=lambda value: str(value)[:30])
def test_parameters_out_of_range_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        SamplingParams(**{field: value})
    assert raised.value.param == field
    assert field in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("field", ["temperature", "stop_token_ids", "logit_bias", "n", "output_kind"])
def test_a_huge_value_is_not_repeated(field: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        SamplingParams(**{field: "x" * 10**7})
    assert len(str(raised.value)) < 300


def test_best_of_is_at_least_n() -> None:
    with pytest.raises(InvalidRequestError, match="best_of"):
        SamplingParams(n=3, best_of=2)


@given(st.dictionaries(st.integers(0, 10**6), st.floats(-100, 100), max_size=20))
def test_logit_bias_takes_token_ids_as_strings(bias: dict[int, float]) -> None:
    assert SamplingParams(logit_bias={str(token): value for token, value in bias.items()}).logit_bias == bias  # type: ignore[misc]


@pytest.mark.parametrize(
    ("prompt", "param"), [("", "prompt"), ([], "prompt"), ([-1], "prompt"), ([400], "prompt"), ([2**40], "prompt"), ([1.0], "prompt"), ([True], "prompt"), ("\ud800", "prompt")],
)  # fmt: skip
async def test_invalid_prompts_are_refused(engine: Engine, prompt: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        await engine.stream(prompt, SamplingParams(max_tokens=1)).wait_finished()
    assert raised.value.param == param
    await settle(engine)


@pytest.mark.parametrize("field", ["tenant", "cache_salt"])
async def test_names_that_cannot_be_encoded_are_refused(engine: Engine, field: str) -> None:
    with pytest.raises(InvalidRequestError, match="not valid Unicode") as raised:
        await engine.stream("x", SamplingParams(max_tokens=1), **{field: "a\ud800"}).wait_finished()  # type: ignore[misc]
    assert raised.value.param == field
    await settle(engine)


@pytest.mark.parametrize("of", [np.asarray, lambda ids: list(np.asarray(ids, np.int32))])
async def test_token_ids_may_be_numpy_integers(engine: Engine, of: Callable[[list[int]], Any]) -> None:
    params = SamplingParams(max_tokens=3, temperature=0.0)
    expected = await engine.stream([5, 6, 7], params).wait_finished()
    found = await engine.stream(of([5, 6, 7]), params).wait_finished()
    assert found.outputs[0].token_ids == expected.outputs[0].token_ids
    assert found.prompt_token_ids == [5, 6, 7]
    assert {type(token) for token in found.prompt_token_ids} == {int}
