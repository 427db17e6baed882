"""Masks of constrained requests: each is filled when all tokens before it are known, and while its step runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
import pytest

from asurge.errors import RequestFailedError
from asurge.guidance import SequenceConstraint
from asurge.pipeline import Completion, Generation, Pipeline, PromptInfo
from asurge.pipeline import pipeline as pipeline_module
from asurge.plan import LogitsShaping, RowSampling
from asurge.scheduler import Request
from tests.fakes import FakeRunner, Panic, continuation
from tests.pipeline.serving import LIMITS, PROMPT, read, serving, submit

STEPS = 6


class Watched(SequenceConstraint):
    """Allows everything, and remembers what it knew when it was asked."""

    def __init__(self, runner: FakeRunner) -> None:
        super().__init__({0}, LIMITS.vocab_size)
        self.runner = runner
        self.known: list[int] = []
        self.asked: list[list[int]] = []
        self.dispatched: list[int] = []

    def accept(self, token_ids: Sequence[int]) -> None:
        self.known += token_ids

    def narrow(self, mask: np.ndarray) -> None:
        self.asked.append(list(self.known))
        self.dispatched.append(sum(kind == "dispatch" for kind, _ in self.runner.events))
        mask[0] = len(self.asked)


class Broken(SequenceConstraint):
    """Fails where it is told to, after its first token."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__({0}, LIMITS.vocab_size)
        self.where, self.error, self.known = where, error, 0

    def _reach(self, where: str) -> None:
        if self.known and where == self.where:
            raise self.error

    def accept(self, token_ids: Sequence[int]) -> None:
        self._reach("accept")
        self.known += len(token_ids)

    def narrow(self, mask: np.ndarray) -> None:
        self._reach("narrow")

    @property
    def finished(self) -> bool:
        self._reach("finished")
        return False


class Borrowed(SequenceConstraint):
    """Cannot be asked while its mask is filled, as llguidance's; complete after ``length`` tokens."""

    def __init__(self, length: int) -> None:
        super().__init__({0}, LIMITS.vocab_size)
        self.left, self.borrowed = length, False

    def accept(self, token_ids: Sequence[int]) -> None:
        self.left -= len(token_ids)

    def narrow(self, mask: np.ndarray) -> None:
        self.borrowed = True
        time.sleep(0.01)
        self.borrowed = False

    @property
    def finished(self) -> bool:
        if self.borrowed:
            raise RuntimeError("Already mutably borrowed")
        return self.left <= 0


def constrained(pipeline: Pipeline, constraint: SequenceConstraint, name: str = "a") -> Generation:
    sampling = RowSampling(shaping=LogitsShaping(masked=True))
    request = Request(name, list(PROMPT), STEPS, sampling, arrival_s=pipeline.clock())
    generation = Generation(
        name, PromptInfo(None, list(PROMPT)), [Completion(name)], arrival_s=request.arrival_s, clock=pipeline.clock
    )
    pipeline.submit(generation, [request], [constraint])
    return generation


@pytest.mark.parametrize("depth", [1, 2, 3])
async def test_a_mask_follows_all_earlier_tokens(depth: int) -> None:
    async with serving(depth=depth) as (pipeline, _, runner):
        watched = Watched(runner)
        output = await read(constrained(pipeline, watched))
    expected = continuation(PROMPT, STEPS)
    assert output.outputs[0].token_ids == expected
    assert watched.asked[:STEPS] == [expected[:count] for count in range(STEPS)]
    assert watched.dispatched[:STEPS] == list(range(1, STEPS + 1)), "its own step runs already"
    samples = [step for kind, step in runner.events if kind == "sample"]
    assert [int(runner.masks[step][0, 0]) for step in samples[:STEPS]] == list(range(1, STEPS + 1))  # type: ignore[index]


async def test_free_requests_in_the_same_steps_have_masks_of_ones() -> None:
    async with serving() as (pipeline, _, runner):
        runner.hold()
        watched = Watched(runner)
        bound, free = constrained(pipeline, watched), submit(pipeline, "free")
        runner.release()
        assert (await read(free)).outputs[0].token_ids == continuation(PROMPT, 6)
        await read(bound)
    both = [masks for masks in runner.masks.values() if masks is not None and len(masks) == 2]
    assert both
    assert all((masks[:, 0] == 0xFFFFFFFF).sum() == 1 for masks in both)


@pytest.mark.parametrize("error", [RuntimeError("broken"), Panic("in Rust"), asyncio.CancelledError()], ids=repr)
@pytest.mark.parametrize("where", ["narrow", "accept", "finished"])
async def test_a_failing_constraint_fails_only_its_request(where: str, error: BaseException) -> None:
    async with serving() as (pipeline, scheduler, _):
        other = submit(pipeline, "free")
        failing = constrained(pipeline, Broken(where, error), "failing")
        with pytest.raises(RequestFailedError) as caught:
            await read(failing)
        assert caught.value.__cause__ is error
        assert (await read(other)).outputs[0].token_ids == continuation(PROMPT, 6)
        scheduler.check()
        assert (pipeline.failure, pipeline.statistics().failed) == (None, 1)


async def test_tokens_are_delivered_while_the_next_masks_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "DELIVERIES_A_TURN", 1)
    async with serving() as (pipeline, scheduler, runner):
        runner.hold()
        generations = [constrained(pipeline, Borrowed(4), name) for name in ("a", "b", "c")]
        runner.release()
        for generation in generations:
            output = await read(generation)
            assert (output.outputs[0].token_ids, output.finish_reason) == (continuation(PROMPT, STEPS)[:4], "stop")
        assert pipeline.failure is None
        scheduler.check()
