"""A pipeline over a fake device, and requests to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from asurge.outputs import RequestOutput
from asurge.params import OutputKind
from asurge.pipeline import Completion, Generation, Pipeline, PromptInfo
from asurge.pipeline.completion import Detokenizer
from asurge.plan import LogitsShaping, RowSampling
from asurge.scheduler import Request, Scheduler
from asurge.text import StopMatcher
from tests.fakes import VOCAB, FakeRunner, limits

LIMITS = limits(vocab_size=VOCAB)
PROMPT = list(range(2, 10))


def spelled(tokens: Sequence[int]) -> str:
    return "".join(f"{token} " for token in tokens)


class Spelling:
    """Each token is written as its number and a space."""

    def push(self, token_ids: Sequence[int]) -> str:
        return spelled(token_ids)

    def flush(self) -> str:
        return ""


@asynccontextmanager
async def serving(
    runner: FakeRunner | None = None, *, depth: int = 2, step_timeout_s: float = 60.0, queued: int = 4096
) -> AsyncIterator[tuple[Pipeline, Scheduler, FakeRunner]]:
    runner = runner or FakeRunner(LIMITS)
    scheduler = Scheduler(runner.limits, max_queued_requests=queued)
    pipeline = Pipeline(scheduler, runner, depth=depth, step_timeout_s=step_timeout_s)
    task = asyncio.get_running_loop().create_task(pipeline.run())
    try:
        yield pipeline, scheduler, runner
    finally:
        runner.release()
        task.cancel()
        await asyncio.wait([task])


def submit(
    pipeline: Pipeline,
    name: str = "a",
    *,
    max_tokens: int = 6,
    stop: tuple[str, ...] = (),
    prompt: Sequence[int] = PROMPT,
    output_kind: OutputKind = "cumulative",
    detokenizer: Detokenizer | None = None,
    apart: bool = False,
) -> Generation:
    sampling = RowSampling(shaping=LogitsShaping() if apart else None)
    request = Request(name, list(prompt), max_tokens, sampling, arrival_s=pipeline.clock())
    completion = Completion(name, detokenizer=detokenizer or Spelling(), stops=StopMatcher(stop) if stop else None)
    generation = Generation(
        name,
        PromptInfo(None, list(prompt)),
        [completion],
        output_kind=output_kind,
        arrival_s=request.arrival_s,
        clock=pipeline.clock,
    )
    pipeline.submit(generation, [request])
    return generation


async def read(generation: Generation) -> RequestOutput:
    while not (output := await generation.wait_output()).finished:
        pass
    return output
