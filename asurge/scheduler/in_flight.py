"""Steps that are planned and whose results have not been applied."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Iterator

from asurge.plan import PlanRow, StepPlan, StepResult
from asurge.scheduler.request import Phase, Sequence

SequenceRow = tuple[Sequence, PlanRow]


@dataclasses.dataclass(frozen=True, slots=True)
class LandedStep:
    """A step whose result has come.

    Attributes:
        sequences: those of the plan's rows.
        lost: all pages are lost, which was not known before.
        void: the step ran on pages that are known to be lost, so what it gives means nothing.
    """

    sequences: tuple[Sequence, ...]
    lost: bool
    void: bool


class StepsInFlight:
    """Numbers steps, and keeps them in the order in which they run."""

    def __init__(self) -> None:
        self._steps: deque[tuple[StepPlan, tuple[Sequence, ...]]] = deque()
        self._next_step, self._first_valid_step = 0, 0
        self._intact = 0  # the first epoch of pages whose loss is not known

    def __len__(self) -> int:
        return len(self._steps)

    def launch(self, decode: list[SequenceRow], prefill: list[SequenceRow]) -> StepPlan:
        """Make a plan of rows, which is in flight from now on."""
        plan = StepPlan(self._next_step, tuple(row for _, row in decode), tuple(row for _, row in prefill))
        self._next_step += 1
        self._steps.append((plan, tuple(sequence for sequence, _ in decode + prefill)))
        return plan

    def land(self, result: StepResult) -> LandedStep:
        """Take the oldest step out. If its result tells of a loss, all steps in flight are void."""
        plan, sequences = self._steps.popleft()
        assert plan is result.plan, "results must be applied in the order of their plans"
        # Two losses may be told by steps in a row, the second of which is void, and one that nobody told of shows in the steps
        # that ran after it.
        step = LandedStep(sequences, self.is_loss(result), self.is_void(plan))
        if step.lost:
            self._intact, self._first_valid_step = result.intact, self._next_step
        return step

    def is_loss(self, result: StepResult) -> bool:
        """Whether a result tells of a loss of all pages that was not known."""
        return result.intact > self._intact

    def is_void(self, plan: StepPlan) -> bool:
        """Whether a step ran on pages that are known to be lost."""
        return plan.step_id < self._first_valid_step

    def plans(self) -> Iterator[StepPlan]:
        """The plans in flight, the oldest first."""
        return (plan for plan, _ in self._steps)

    def pending(self) -> dict[Sequence, int]:
        """Number of tokens that count on their way to each sequence."""
        tokens = Counter[Sequence]()
        for plan, sequences in self._steps:
            for sequence, row in zip(sequences, plan.rows, strict=True):
                if sequence.phase is not Phase.ENDED and row.samples and row.epoch >= sequence.valid_epoch:
                    tokens[sequence] += row.decode_steps
        return tokens
