"""Beam search over an engine: the likeliest whole texts instead of a draw."""

from __future__ import annotations

import dataclasses
import heapq
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence

from asurge.engine.admission import Admission
from asurge.engine.prompts import Prompt
from asurge.engine.stream import finish_all
from asurge.errors import RequestAbortedError
from asurge.outputs import CompletionOutput, FinishReason, Logprob, RequestOutput
from asurge.params import RequestOptions, SamplingParams, check_integer, check_number, check_options
from asurge.plan import MAX_LOGPROBS

MAX_BEAM_WIDTH = MAX_LOGPROBS // 2
MAX_BEAM_TOKENS = 1 << 20

Complete = Callable[[list[list[int]], SamplingParams], Awaitable[list[RequestOutput]]]
"""Completes prompts together, in their order."""


@dataclasses.dataclass(frozen=True, slots=True)
class Beam:
    """A text in progress: its tokens after the prompt, and the sum of their logprobs."""

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0

    def score(self, length_penalty: float) -> float:
        """Sums favour short texts; dividing by a power of the length makes up for it (Wu et al., 2016, simplified)."""
        return float(self.logprob / max(len(self.token_ids), 1) ** length_penalty)


async def beam_search(
    admission: Admission,
    prompt: Prompt,
    options: RequestOptions,
    *,
    beam_width: int,
    max_tokens: int,
    length_penalty: float,
    at_most: int,
) -> RequestOutput:
    """The likeliest completions of a prompt; see `asurge.Engine.beam_search`.

    Args:
        at_most: how many beams may be in the queue at a time.
    """
    check_integer("beam_width", beam_width, 1, MAX_BEAM_WIDTH)
    check_integer("max_tokens", max_tokens, 1, MAX_BEAM_TOKENS)
    check_number("length_penalty", length_penalty, -10.0, 10.0)
    check_options(options)
    began_s, params = time.monotonic(), SamplingParams(max_tokens=max_tokens)
    deadline_s = options.get("deadline_s")

    async def complete(prompts: list[list[int]], params: SamplingParams) -> list[RequestOutput]:
        left = None if deadline_s is None else max(deadline_s - (time.monotonic() - began_s), 0.0)
        remaining: RequestOptions = {**options, "deadline_s": left}
        streams = [admission.stream(prompt, params, remaining) for prompt in prompts]
        return await finish_all(streams, at_most=at_most)

    inputs = admission.inputs
    fitted = await admission.fit(prompt, params)
    found = await search(
        complete,
        fitted.token_ids,
        inputs.end_token_ids,
        beam_width=beam_width,
        max_tokens=fitted.max_tokens,
        length_penalty=length_penalty,
    )
    outputs = completions(found, inputs.end_token_ids, lambda token_ids: inputs.decode(token_ids, params))
    info = inputs.prompt_info(prompt, params, fitted)
    return RequestOutput(
        request_id=f"beam-{secrets.token_hex(8)}",
        prompt=info.text,
        prompt_token_ids=info.token_ids,
        outputs=outputs,
        finished=True,
        accumulated_text=outputs[0].text,
        num_generated_tokens=sum(len(one.token_ids) for one in outputs),
        num_truncated_tokens=info.num_truncated_tokens,
        capped_max_tokens=info.capped_max_tokens,
        processing_time=time.monotonic() - began_s,
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

    Each round extends every beam by its likeliest tokens and keeps the best; a text that ends gives up its place to others.
    Prompts share their pages in the prefix cache, so a round recomputes at most one page for each beam.

    Raises:
        RequestAbortedError: a round was ended before it had drawn for every beam.
    """
    params = SamplingParams(
        max_tokens=1, temperature=0.0, logprobs=2 * beam_width, ignore_eos=True, detokenize=False, output_kind="final"
    )
    beams, done = [Beam()], list[tuple[Beam, FinishReason]]()
    for _ in range(max_tokens):
        outputs = await complete([[*prompt, *beam.token_ids] for beam in beams], params)
        longer: list[Beam] = []
        for beam, output in zip(beams, outputs, strict=True):
            for token, told in _likeliest(output).items():
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


def _likeliest(output: RequestOutput) -> dict[int, Logprob]:
    """What may follow a beam."""
    (drawn,) = output.outputs
    if drawn.finish_reason == "abort" or not drawn.logprobs:
        raise RequestAbortedError("the beam search was ended before its texts were")
    return drawn.logprobs[0]


def completions(
    found: Sequence[tuple[Beam, FinishReason]], ends: frozenset[int], decode: Callable[[Sequence[int]], str]
) -> list[CompletionOutput]:
    """Texts as an output holds them; the token that ends one is not part of it."""
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
