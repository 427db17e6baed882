"""Sampling parameters and logprobs, alone and in batches, against whole forward passes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from asurge import Engine, RequestOutput, SamplingParams
from tests.checkpoints import random_tokens
from tests.conftest import PAGE_BYTES, TINY
from tests.requests.reference import Change, Logits, Reference

PROMPT = random_tokens(45)
STEPS = 24
GREEDY = SamplingParams(max_tokens=STEPS, temperature=0.0, ignore_eos=True)


def penalised(repetition: float = 1.0, frequency: float = 0.0, presence: float = 0.0) -> Change:
    def change(logits: Logits, prompt: list[int], answer: list[int]) -> Logits:
        seen = sorted({*prompt, *answer})
        logits = logits.copy()
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / repetition, logits[seen] * repetition)
        times = np.bincount(answer, minlength=len(logits))
        return logits - frequency * times - presence * (times > 0)

    return change


def biased(bias: dict[int, float]) -> Change:
    def change(logits: Logits, prompt: list[int], answer: list[int]) -> Logits:
        logits = logits.copy()
        logits[list(bias)] += list(bias.values())
        return logits

    return change


def even(logits: Logits, prompt: list[int], answer: list[int]) -> Logits:
    return logits * 0.5 - 2.0 * (np.arange(len(logits)) % 2)


BIAS = {7: 3.0, 11: 3.5, 390: 2.5, 3: -100.0}
CASES: dict[str, tuple[dict[str, object], Change]] = {
    "repetition": ({"repetition_penalty": 1.8}, penalised(repetition=1.8)),
    "frequency": ({"frequency_penalty": 1.5}, penalised(frequency=1.5)),
    "presence": ({"presence_penalty": 2.0}, penalised(presence=2.0)),
    "rewards": ({"frequency_penalty": -0.7, "repetition_penalty": 0.7}, penalised(0.7, -0.7)),
    "bias": ({"logit_bias": BIAS}, biased(BIAS)),
    "processors": ({"logits_processors": {"scale": 0.5, "only_even": 2.0}}, even),
}
every_case = pytest.mark.parametrize("case", CASES)


async def generate(engine: Engine, params: SamplingParams, prompt: list[int] = PROMPT) -> RequestOutput:
    return await engine.stream(prompt, params).wait_finished()


@every_case
async def test_greedy_tokens_equal_the_reference(engine: Engine, reference: Reference, case: str) -> None:
    given, change = CASES[case]
    output = await generate(engine, dataclasses.replace(GREEDY, **given))
    assert output.outputs[0].token_ids == reference.greedy(PROMPT, STEPS, change)
    plain = await generate(engine, GREEDY)
    assert output.outputs[0].token_ids != plain.outputs[0].token_ids, "the parameter changed nothing: a weak test"


async def test_results_do_not_depend_on_other_requests(engine: Engine) -> None:
    """Rows that ask for nothing, greedy and random, beside rows that ask for everything."""
    sampled = SamplingParams(max_tokens=STEPS, temperature=1.3, min_p=0.02, seed=3, ignore_eos=True)
    wishes = [GREEDY, sampled, dataclasses.replace(sampled, top_k=40, top_p=0.9, seed=8)]
    wishes += [dataclasses.replace(GREEDY, **given) for given, _ in CASES.values()]
    wishes += [dataclasses.replace(sampled, typical_p=0.8, seed=seed, logprobs=2) for seed in range(3)]
    alone = [await generate(engine, params) for params in wishes]
    together = await engine.generate([PROMPT] * len(wishes), wishes, use_tqdm=False)
    for one, other in zip(alone, together, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert [list(at) for at in one.outputs[0].logprobs or []] == [
            list(at) for at in other.outputs[0].logprobs or []
        ]


async def test_penalties_survive_preemption(tiny_folder: Path, engine: Engine) -> None:
    params = dataclasses.replace(GREEDY, max_tokens=60, frequency_penalty=1.0, repetition_penalty=1.3)
    prompts = [[n, *PROMPT[:20]] for n in range(4, 8)]
    async with Engine(str(tiny_folder), **TINY, kv_cache_bytes=17 * PAGE_BYTES, enable_prefix_caching=False) as small:
        outputs = await small.generate(prompts, params, use_tqdm=False)
        assert small.statistics().preemptions > 0
    expected = await engine.generate(prompts, params, use_tqdm=False)
    assert [one.outputs for one in outputs] == [one.outputs for one in expected]


async def test_logprobs_are_those_of_the_model_itself(engine: Engine, reference: Reference) -> None:
    """Logprobs are those before temperature, bias and top-k."""
    params = SamplingParams(max_tokens=STEPS, temperature=1.5, seed=1, top_k=30, logit_bias={9: 4.0}, logprobs=3, ignore_eos=True)  # fmt: skip
    completion = (await generate(engine, params)).outputs[0]
    expected = reference.logprobs(PROMPT + completion.token_ids)[len(PROMPT) - 1 : -1]
    assert completion.logprobs is not None
    assert len(completion.logprobs) == STEPS
    for token, told, truth in zip(completion.token_ids, completion.logprobs, expected, strict=True):
        assert token in told
        assert list(told)[:3] == np.argsort(-truth, kind="stable")[:3].tolist()
        for other, logprob in told.items():
            assert logprob.logprob == pytest.approx(truth[other], abs=1e-3)
            assert logprob.rank == 1 + (truth > truth[other]).sum()
    total = expected[np.arange(STEPS), completion.token_ids].sum()
    assert completion.cumulative_logprob == pytest.approx(total, abs=1e-2)


async def test_prompt_logprobs_in_chunks_and_with_a_warm_cache(engine: Engine, reference: Reference) -> None:
    """The prompt is longer than a step; the second time its pages are in the cache, and it is scored all the same."""
    expected = reference.logprobs(PROMPT)
    for _ in range(2):
        output = await generate(engine, dataclasses.replace(GREEDY, max_tokens=2, prompt_logprobs=2))
        told = output.prompt_logprobs
        assert told is not None
        assert len(told) == len(PROMPT)
        assert told[0] is None
        for at, one in enumerate(told[1:], 1):
            assert one is not None
            assert list(one)[:2] == np.argsort(-expected[at - 1], kind="stable")[:2].tolist()
            assert one[PROMPT[at]].logprob == pytest.approx(expected[at - 1, PROMPT[at]], abs=1e-3)


async def test_streamed_logprobs_come_with_their_tokens(engine: Engine) -> None:
    params = dataclasses.replace(GREEDY, logprobs=0, output_kind="delta")
    outputs = [output.outputs[0] async for output in engine.stream(PROMPT, params)]
    assert all(len(one.logprobs or []) == len(one.token_ids) for one in outputs)
    assert [list(at) for one in outputs for at in one.logprobs or []] == [
        [token] for one in outputs for token in one.token_ids
    ]


async def test_n_completions_are_those_of_n_requests(engine: Engine) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.2, seed=20, ignore_eos=True)
    before = engine.statistics().prefix_cache_hits
    output = await generate(engine, dataclasses.replace(params, n=4), PROMPT[::-1])
    assert engine.statistics().prefix_cache_hits - before == 3 * 40, "three of four share the full pages of the prompt"
    singles = [await generate(engine, dataclasses.replace(params, seed=20 + index), PROMPT[::-1]) for index in range(4)]
    assert [one.token_ids for one in output.outputs] == [one.outputs[0].token_ids for one in singles]
    assert [one.index for one in output.outputs] == [0, 1, 2, 3]
    assert len({tuple(one.token_ids) for one in output.outputs}) == 4
    assert output.num_generated_tokens == 48


async def test_streams_of_n_add_up_for_each_choice(engine: Engine) -> None:
    params = SamplingParams(n=3, max_tokens=12, temperature=1.2, seed=20, ignore_eos=True, output_kind="delta")
    texts, tokens = [""] * 3, [0] * 3
    async for output in engine.stream(PROMPT, params):
        for one in output.outputs:
            texts[one.index] += one.text
            tokens[one.index] += len(one.token_ids)
    whole = await generate(engine, dataclasses.replace(params, output_kind="final"))
    assert texts == [one.text for one in whole.outputs]
    assert tokens == [12] * 3


async def test_best_of_gives_the_likeliest_at_the_end(engine: Engine) -> None:
    params = SamplingParams(n=5, max_tokens=10, temperature=1.5, seed=2, ignore_eos=True, logprobs=0)
    every = (await generate(engine, params)).outputs
    best = sorted(every, key=lambda one: -(one.cumulative_logprob or 0))[:2]
    outputs = [one async for one in engine.stream(PROMPT, dataclasses.replace(params, n=2, best_of=5, logprobs=None))]
    assert len(outputs) == 1
    assert [one.token_ids for one in outputs[0].outputs] == [one.token_ids for one in best]
    assert [one.index for one in outputs[0].outputs] == [0, 1]


async def test_aborting_one_of_n_ends_all_and_frees_everything(engine: Engine) -> None:
    stream = engine.stream(PROMPT, dataclasses.replace(GREEDY, n=4, max_tokens=80), request_id="many")
    await anext(stream)
    assert engine.num_running_requests + engine.num_pending_requests == 4
    assert engine.abort_request("many")
    assert engine.num_running_requests + engine.num_pending_requests == 0
    last = await anext(stream)
    assert last.finished
    assert {one.finish_reason for one in last.outputs} == {"abort"}


async def test_echo_begins_with_the_prompt(engine: Engine) -> None:
    plain = await engine.stream("The quick brown fox", GREEDY).wait_finished()
    params = dataclasses.replace(GREEDY, echo=True, output_kind="delta")
    deltas = [output.outputs[0].text async for output in engine.stream("The quick brown fox", params)]
    assert "".join(deltas) == "The quick brown fox" + plain.get_text()


async def test_without_detokenizing_there_are_only_tokens(engine: Engine) -> None:
    output = await generate(engine, dataclasses.replace(GREEDY, detokenize=False))
    assert output.get_text() == ""
    assert output.outputs[0].token_ids == (await generate(engine, GREEDY)).outputs[0].token_ids
