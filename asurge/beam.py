"""Beam search over an engine: the likeliest whole texts instead of a draw."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Awaitable, Callable, Sequence

from asurge.errors import InvalidRequestError
from asurge.outputs import CompletionOutput, FinishReason, RequestOutput
from asurge.params import SamplingParams
from asurge.plan import MAX_LOGPROBS

MAX_BEAM_WIDTH = MAX_LOGPROBS // 2

Complete = Callable[[list[list[int]], SamplingParams], Awaitable[list[RequestOutput]]]
"""Completes prompts together, in their order."""


@dataclasses.dataclass(frozen=True, slots=True)
class Beam:
    """A text on its way: its tokens behind the prompt, and the sum of their logprobs."""

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0

    def score(self, length_penalty: float) -> float:
        """Sums favour short texts; dividing by a power of the length makes up for it (Wu et al., 2016, simplified)."""
        return float(self.logprob / max(len(self.token_ids), 1) ** length_penalty)


def check_beams(beam_width: int, max_tokens: int, length_penalty: float) -> None:
    """Raises:
    InvalidRequestError: a value is out of range; ``param`` names it.
    """
    for name, value, high in (("beam_width", beam_width, MAX_BEAM_WIDTH), ("max_tokens", max_tokens, 1 << 20)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
            raise InvalidRequestError(f"{name}={value!r} must be an integer in [1, {high}]", param=name)
    if (
        isinstance(length_penalty, bool)
        or not isinstance(length_penalty, int | float)
        or not -10 <= length_penalty <= 10
    ):
        raise InvalidRequestError(
            f"length_penalty={length_penalty!r} must be a number in [-10, 10]", param="length_penalty"
        )


async def search(
    complete: Complete,
    prompt: Sequence[int],
    ends: frozenset[int],
    *,
    beam_width: int,
    max_tokens: int,
    length_penalty: float,
) -> list[tuple[Beam, FinishReason]]:
    """The best texts, best first: those that ended, and those cut at ``max_tokens``.

    Each round extends every beam by its likeliest tokens and keeps the best; a text that ends leaves its place to
    others. Prompts share their pages in the prefix cache, so a round computes a page at most anew for each beam.
    """
    params = SamplingParams(
        max_tokens=1, temperature=0.0, logprobs=2 * beam_width, ignore_eos=True, detokenize=False, output_kind="final"
    )
    beams, done = [Beam()], list[tuple[Beam, FinishReason]]()
    for _ in range(max_tokens):
        outputs = await complete([[*prompt, *beam.token_ids] for beam in beams], params)
        longer: list[Beam] = []
        for beam, output in zip(beams, outputs, strict=True):
            for token, told in (output.outputs[0].logprobs or [{}])[0].items():
                extended = Beam((*beam.token_ids, token), beam.logprob + told.logprob)
                if token in ends:
                    done.append((extended, "stop"))
                else:
                    longer.append(extended)
        beams = heapq.nlargest(beam_width, longer, key=lambda beam: beam.logprob)
        if not beams:
            break
    found = [*done, *((beam, "length") for beam in beams)]
    return heapq.nlargest(beam_width, found, key=lambda one: one[0].score(length_penalty))


def completions(
    found: Sequence[tuple[Beam, FinishReason]], ends: frozenset[int], decode: Callable[[Sequence[int]], str]
) -> list[CompletionOutput]:
    """Texts as an output has them; the token that ends one is not part of it."""
    return [
        CompletionOutput(
            index=index,
            text=decode([token for token in beam.token_ids if token not in ends]),
            token_ids=list(beam.token_ids),
            cumulative_logprob=beam.logprob,
            finish_reason=reason,
            stop_reason=beam.token_ids[-1] if reason == "stop" else None,
        )
        for index, (beam, reason) in enumerate(found)
    ]
