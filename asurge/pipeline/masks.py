"""Masks of allowed tokens for constrained requests, updated step by step."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from asurge.containment import contained
from asurge.guidance import SequenceConstraint, fill_masks
from asurge.plan import StepPlan, mask_words
from asurge.scheduler import SequenceUpdate


class Masks:
    """The constraints of all requests that have one, by sequence.

    `accept` is called on the loop, `fill` in a worker thread, never both at once for one request: a mask is filled once
    everything planned before it has been accepted, and nothing is accepted for its step before that is sampled. `finished` may
    be called at any time: a constraint itself must not be asked while its mask is filled.

    Args:
        threads: of the engine; masks are filled beside what the device does.
    """

    def __init__(self, vocab_size: int, threads: int = 1) -> None:
        self._words, self._threads = mask_words(vocab_size), threads
        self._constraints: dict[str, SequenceConstraint] = {}
        self._finished = set[str]()

    def add(self, sequence_id: str, constraint: SequenceConstraint) -> None:
        self._constraints[sequence_id] = constraint

    def discard(self, sequence_id: str) -> None:
        self._constraints.pop(sequence_id, None)
        self._finished.discard(sequence_id)

    def wanted(self, plan: StepPlan) -> bool:
        """Whether any row of a plan samples under a mask."""
        return any(row.samples and row.sequence_id in self._constraints for row in plan.rows)

    def accept(self, updates: Iterable[SequenceUpdate]) -> dict[str, BaseException]:
        """Take in what requests sampled; returns the failures by sequence."""
        failed: dict[str, BaseException] = {}
        for update in updates:
            constraint = self._constraints.get(update.sequence_id)
            if constraint is not None and update.token_ids:
                try:
                    constraint.accept(update.token_ids)
                    if constraint.finished:
                        self._finished.add(update.sequence_id)
                except BaseException as error:  # a grammar that breaks must fail its own request only
                    failed[update.sequence_id] = contained(error)
        return failed

    def finished(self, sequence_id: str) -> bool:
        """Whether nothing may follow what a request has sampled."""
        return sequence_id in self._finished

    def fill(self, plan: StepPlan) -> tuple[npt.NDArray[np.uint32], dict[str, BaseException]]:
        """Masks ``[rows, words]`` of a plan's rows, and the failures by sequence; those may sample anything. Blocks."""
        masks = np.full((len(plan.rows), self._words), 0xFFFFFFFF, np.uint32)
        rows = {
            index: constraint
            for index, row in enumerate(plan.rows)
            if row.samples and (constraint := self._constraints.get(row.sequence_id)) is not None
        }
        filled = masks[list(rows)]
        failed = fill_masks(list(rows.values()), filled, self._threads)
        masks[list(rows)] = filled
        owners = list(rows)
        return masks, {plan.rows[owners[at]].sequence_id: error for at, error in failed.items()}
