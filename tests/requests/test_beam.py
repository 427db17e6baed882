"""Beam search against an exhaustive one over whole forward passes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from asurge import Engine, RequestOutput, SamplingParams
from asurge.engine.beam import search
from asurge.errors import DeadlineExceededError, InvalidRequestError, RequestAbortedError
from asurge.outputs import CompletionOutput, FinishReason, Logprob
from tests.checkpoints import random_tokens
from tests.idle import settle
from tests.requests.reference import Reference

PROMPT = random_tokens(21)


def reference_beams(reference: Reference, width: int, length: int, end: int) -> list[tuple[float, tuple[int, ...]]]:
    """Keeps the best of all continuations in each round, not only of the likeliest tokens."""
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    done: list[tuple[float, tuple[int, ...]]] = []
    for _ in range(length):
        longer = []
        for score, tokens in beams:
            logprobs = reference.logprobs([*PROMPT, *tokens])[-1]
            best = np.argsort(-logprobs)[: 2 * width]
            longer += [(score + float(logprobs[token]), (*tokens, int(token))) for token in best]
        done += [one for one in longer if one[1][-1] == end]
        beams = sorted((one for one in longer if one[1][-1] != end), reverse=True)[:width]
    return sorted([*done, *beams], key=lambda one: -one[0] / len(one[1]))[:width]


@pytest.mark.parametrize(("width", "length"), [(1, 6), (3, 5), (10, 3)])
async def test_beams_are_those_of_the_reference(engine: Engine, reference: Reference, width: int, length: int) -> None:
    output = await engine.beam_search(PROMPT, beam_width=width, max_tokens=length)
    expected = reference_beams(reference, width, length, end=1)
    assert [tuple(one.token_ids) for one in output.outputs] == [tokens for _, tokens in expected]
    for one, (logprob, _) in zip(output.outputs, expected, strict=True):
        assert one.cumulative_logprob == pytest.approx(logprob, abs=1e-2)
    scores = [(one.cumulative_logprob or 0.0) / len(one.token_ids) for one in output.outputs]
    assert all(first >= second for first, second in itertools.pairwise(scores))
    assert output.finished
    assert output.get_text() == output.outputs[0].text
    await settle(engine)


async def test_a_wider_search_finds_nothing_less_likely(engine: Engine) -> None:
    best = [
        (await engine.beam_search("Once upon", beam_width=width, max_tokens=8, length_penalty=0.0)).outputs[0]
        for width in (1, 8)
    ]
    assert (best[1].cumulative_logprob or 0.0) >= (best[0].cumulative_logprob or 0.0)


@pytest.mark.parametrize(
    "wrong",
    [{"beam_width": 0}, {"beam_width": 11}, {"beam_width": 1.5}, {"max_tokens": 0}, {"length_penalty": 11.0}, {"length_penalty": "1"}],
)  # fmt: skip
async def test_wrong_arguments_are_named(engine: Engine, wrong: dict[str, Any]) -> None:
    ((name, _),) = wrong.items()
    with pytest.raises(InvalidRequestError, match=name):
        await engine.beam_search("x", **wrong)


def output_with(*logprobs: float) -> RequestOutput:
    """The answer of a round: a logprob for each token, or, without any, that it was ended before."""
    reason: FinishReason = "length" if logprobs else "abort"
    places = [{token: Logprob(logprob, token, "") for token, logprob in enumerate(logprobs)}] if logprobs else []
    return RequestOutput("r", None, [7], [CompletionOutput(0, "", [], logprobs=places, finish_reason=reason)])


@pytest.mark.parametrize("whole_rounds", [0, 2])
async def test_an_aborted_round_ends_beam_search(whole_rounds: int) -> None:
    """Beams that are lost must not make the others the likeliest."""
    rounds = 0

    async def complete(prompts: list[list[int]], params: SamplingParams) -> list[RequestOutput]:
        nonlocal rounds
        rounds += 1
        lost = len(prompts) - 1 if rounds > whole_rounds else None
        return [output_with() if at == lost else output_with(-1.0, -2.0) for at in range(len(prompts))]

    with pytest.raises(RequestAbortedError, match="ended"):
        await search(complete, [7], frozenset([9]), beam_width=2, max_tokens=5, length_penalty=1.0)
    assert rounds == whole_rounds + 1


async def test_a_search_can_be_given_a_deadline(engine: Engine) -> None:
    with pytest.raises(DeadlineExceededError):
        await engine.beam_search("x", max_tokens=50, deadline_s=0.0)
    await settle(engine)
