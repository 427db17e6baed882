"""Constrained decoding through the whole engine, in mixed batches, with overlap and without."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from asurge import Engine, GuidedDecodingParams, RequestOutput, SamplingParams
from asurge.errors import InvalidRequestError, RequestFailedError
from asurge.guidance import SequenceConstraint
from tests.conftest import PAGE_BYTES, TINY
from tests.guidance.schemas import schema
from tests.idle import settle
from tests.text.families import tokenizer

HOT = SamplingParams(max_tokens=100, temperature=1.5, seed=5)
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)


def guided(params: SamplingParams = HOT, **form: Any) -> SamplingParams:
    return dataclasses.replace(params, guided_decoding=GuidedDecodingParams(**form))


async def generate(engine: Engine, params: SamplingParams, prompt: str = "Say it:") -> RequestOutput:
    return await engine.stream(prompt, params).wait_finished()


def small_schemas(count: int) -> list[dict[str, Any]]:
    """Make schemas whose texts are surely short enough."""
    found = [schema(np.random.default_rng(seed)) for seed in range(4 * count)]
    return [one for one in found if len(json.dumps(one)) < 250][:count]


async def test_schemas_hold_in_any_batch(tiny_folder: Path, engine: Engine) -> None:
    """Forty schemas at all temperatures beside free requests, overlapped; alone and without overlap the same texts."""
    wishes = [
        guided(SamplingParams(max_tokens=110, temperature=(0.0, 0.7, 2.0)[at % 3], seed=at), json=one, disable_any_whitespace=True)
        for at, one in enumerate(small_schemas(40))
    ]  # fmt: skip
    free = [dataclasses.replace(HOT, seed=seed, max_tokens=30, ignore_eos=True) for seed in range(10)]
    outputs = await engine.generate(["Say it:"] * 50, wishes + free, use_tqdm=False)
    finished = 0
    for params, output in zip(wishes, outputs, strict=False):
        if output.finish_reason == "stop":
            assert params.guided_decoding is not None
            jsonschema.validate(json.loads(output.get_text()), json.loads(str(params.guided_decoding.json)))
            finished += 1
    assert finished > 30
    async with Engine(str(tiny_folder), **TINY, pipeline_depth=1) as plain:
        for params, output in list(zip(wishes + free, outputs, strict=True))[::7]:
            assert (await generate(plain, params)).outputs[0].token_ids == output.outputs[0].token_ids
    await settle(engine)


async def test_every_structured_output_holds(engine: Engine) -> None:
    assert (await generate(engine, guided(choice=["yes", "no"]))).get_text() in ("yes", "no")
    text = (await generate(engine, guided(regex="[a-c]{3}\\d{2}"))).get_text()
    assert re.fullmatch("[a-c]{3}\\d{2}", text)
    text = (await generate(engine, guided(grammar='start: "x"+ "y"'))).get_text()
    assert re.fullmatch("x+y", text)


async def test_a_complete_structured_output_ends_the_text_even_with_ignore_eos(engine: Engine) -> None:
    output = await generate(engine, dataclasses.replace(guided(choice=["yes"]), ignore_eos=True))
    assert (output.get_text(), output.finish_reason) == ("yes", "stop")


SET = {"type": "object", "properties": {"tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}}
RELAXED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a schema": ({"json": SET}, ("uniqueItems at /properties/tags",)),
    "a schema as text": ({"json": json.dumps(SET)}, ("uniqueItems at /properties/tags",)),
    "a schema beside calls": ({"json": SET, "alternative": 'start: "a"'}, ("uniqueItems at /properties/tags",)),
    "tags": (
        {"structural_tag": {"structures": [{"begin": "<a>", "schema": one, "end": ""} for one in ({}, SET)], "triggers": ["<a>"]}},
        ("uniqueItems at /properties/tags of structures[1]",),
    ),
    "a schema that holds": ({"json": {"type": "integer"}}, ()),
    "no schema": ({"choice": ["a"]}, ()),
}  # fmt: skip


@pytest.mark.parametrize("case", RELAXED)
async def test_what_a_grammar_cannot_express_is_reported(engine: Engine, case: str) -> None:
    form, wanted = RELAXED[case]
    params = guided(dataclasses.replace(HOT, max_tokens=3, n=2), **form)
    for _ in range(2):  # compiled, and kept
        async for output in engine.stream("Say it:", params):
            assert tuple(output.relaxed) == wanted
    assert (await generate(engine, GREEDY)).relaxed == ()


async def test_each_of_n_completions_has_its_own_constraint(engine: Engine) -> None:
    output = await generate(engine, dataclasses.replace(guided(regex="[a-e]{6}"), n=4))
    texts = [one.text for one in output.outputs]
    assert all(re.fullmatch("[a-e]{6}", text) for text in texts)
    assert len(set(texts)) > 1


async def test_a_constraint_survives_preemption(tiny_folder: Path, engine: Engine) -> None:
    params = [guided(dataclasses.replace(HOT, seed=seed), regex="([a-e]{3}-){15}") for seed in range(4)]
    async with Engine(str(tiny_folder), **TINY, kv_cache_bytes=17 * PAGE_BYTES, enable_prefix_caching=False) as small:
        outputs = await small.generate(["Say it, please:"] * 4, params, use_tqdm=False)
        assert small.statistics().preemptions > 0
    expected = await engine.generate(["Say it, please:"] * 4, params, use_tqdm=False)
    assert [one.get_text() for one in outputs] == [one.get_text() for one in expected]


async def test_bad_words_are_never_generated(engine: Engine) -> None:
    plain, codec = await generate(engine, GREEDY), tokenizer("byte-level BPE")
    said = {codec.decode([token]) for token in plain.outputs[0].token_ids}
    word = min(one for one in said if len(codec.encode(one, add_special_tokens=False)) == 1 and one.isascii())
    assert word in plain.get_text()
    output = await generate(engine, dataclasses.replace(GREEDY, bad_words=[word]))
    assert word not in {codec.decode([token]) for token in output.outputs[0].token_ids}


async def test_white_space_may_be_a_bad_word(demo: Engine) -> None:
    """And bans no other."""
    prompt, params = "import os\n\ndef join(a, b):\n", dataclasses.replace(GREEDY, max_tokens=40, ignore_eos=True)
    plain, without = [
        (await demo.generate(prompt, dataclasses.replace(params, bad_words=words), use_tqdm=False))[0].outputs[0]
        for words in ((), ("\n",))
    ]
    (line_break,) = demo.tokenizer.encode("\n", add_special_tokens=False)
    assert line_break in plain.token_ids
    assert line_break not in without.token_ids
    assert " " in without.text


async def test_bad_words_of_two_tokens_are_never_generated(engine: Engine) -> None:
    pair = tokenizer("byte-level BPE").encode("4%", add_special_tokens=False)
    assert len(pair) == 2
    params = dataclasses.replace(HOT, temperature=20.0, allowed_token_ids=pair, max_tokens=60)
    assert "4%" in (await generate(engine, params)).get_text()
    text = (await generate(engine, dataclasses.replace(params, bad_words=["4%"]))).get_text()
    assert "4%" not in text
    assert {"4", "%"} == set(text)


async def test_only_allowed_token_ids_are_sampled(engine: Engine) -> None:
    output = await generate(engine, dataclasses.replace(HOT, allowed_token_ids=[30, 31, 77], max_tokens=30))
    assert set(output.outputs[0].token_ids) == {30, 31, 77}


async def test_min_tokens_delays_the_end(engine: Engine) -> None:
    push = dataclasses.replace(HOT, logit_bias={1: 100.0}, stop_token_ids=[1])
    assert (await generate(engine, push)).num_generated_tokens == 1
    output = await generate(engine, dataclasses.replace(push, min_tokens=9))
    assert (output.num_generated_tokens, output.finish_reason) == (10, "stop")


async def test_repetition_ends_the_text(engine: Engine) -> None:
    params = dataclasses.replace(GREEDY, logit_bias={50: 100.0}, repetition_stop=5, max_tokens=60)
    output = await generate(engine, params)
    assert output.outputs[0].token_ids == [50] * 5
    assert (output.finish_reason, output.outputs[0].stop_reason) == ("stop", "repetition")


async def test_a_grammar_that_breaks_fails_its_own_request_only(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: SequenceConstraint, mask: np.ndarray) -> None:
        raise RuntimeError("limits")

    async def free() -> RequestOutput:
        return await generate(engine, GREEDY)

    expected = await free()
    stream = engine.stream("Say it:", guided(regex="[a-c]{90}"))
    await anext(stream)
    monkeypatch.setattr(SequenceConstraint, "narrow", broken)
    with pytest.raises(RequestFailedError, match="limits"):
        await stream.wait_finished()
    assert (await free()).outputs == expected.outputs
    monkeypatch.undo()
    await settle(engine)


async def test_constraints_that_a_model_cannot_serve_are_refused_by_name(engine: Engine) -> None:
    for params, name in (
        (dataclasses.replace(HOT, thinking_budget=5), "thinking_budget"),
        (dataclasses.replace(HOT, logits_processors={"nope": 1.0}), "logits_processors"),
        (dataclasses.replace(HOT, logit_bias={400: 1.0}), "logit_bias"),
        (dataclasses.replace(HOT, allowed_token_ids=[400]), "allowed_token_ids"),
        (dataclasses.replace(HOT, stop_token_ids=[10**12]), "stop_token_ids"),
        (guided(regex="(abc"), "guided_decoding.regex"),
    ):
        with pytest.raises(InvalidRequestError) as raised:
            await generate(engine, params)
        assert raised.value.param == name
