"""A device whose pages remember what they were computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from asurge.plan import PlanRow, RunnerLimits, StepPlan, StepResult
from tests.fakes import PagedDevice, page_of

GARBAGE = (-1, b"garbage")


def trace(parent: bytes, token: int) -> bytes:
    """The contents of a position: its token and, through its parent, all tokens before it."""
    return hashlib.sha256(parent + token.to_bytes(4, "little")).digest()


def traces(token_ids: Sequence[int]) -> list[bytes]:
    """The correct contents of pages for these tokens, with an entry for each position."""
    parent, contents = b"", list[bytes]()
    for token in token_ids:
        parent = trace(parent, token)
        contents.append(parent)
    return contents


class TracingDevice(PagedDevice):
    """A `PagedDevice` in which each position also holds its table, and a digest of the context it was computed from.

    Real keys and values depend on everything before them, so one wrong page spoils all that is computed behind it.
    A device that only stores tokens cannot show that. A failing step writes nothing here, and leaves the slots as
    they were. `read_garbage` names the rows of a step that found anything but their own context.
    """

    def __init__(self, limits: RunnerLimits) -> None:
        super().__init__(limits)
        self.contents = [[GARBAGE] * limits.page_size for _ in range(limits.num_pages)]
        self.read_garbage: dict[int, set[str]] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        before = self.last_token.copy()
        result = super().execute(plan)
        spoiled = set[str]()
        # Rows are traced in plan order: a row that shares a page written in the same step comes behind its writer.
        for row, sampled in zip(plan.rows, result.token_ids.tolist(), strict=True):
            steps = sum(token >= 0 for token in sampled)
            written = [int(before[row.slot]), *sampled[: steps - 1]]
            if not self._trace(row, written):
                spoiled.add(row.sequence_id)
        self.read_garbage[plan.step_id] = spoiled
        return result

    def lose_state(self) -> None:
        super().lose_state()
        self.contents = [[GARBAGE] * self.limits.page_size for _ in range(self.limits.num_pages)]

    def _trace(self, row: PlanRow, written: list[int]) -> bool:
        """Write a row's digests; returns whether all it read was computed from its own context."""
        tokens = written if row.token_ids is None else row.token_ids.tolist()
        before = self.context(row, row.start, row.start)
        right = min([*before, *tokens]) >= 0 and self._is_own(row, before, row.start)
        parent = traces(before)[-1] if right and before else b""
        for at, token in enumerate(tokens, row.start):
            parent = trace(parent, token) if right else b""
            for table in range(len(self.limits.windows)):
                page = page_of(row, table, at // self.limits.page_size)
                self.contents[page][at % self.limits.page_size] = (table, parent) if right else GARBAGE
        end = row.start + len(tokens)
        context = self.context(row, end, end - 1)
        return right and min(context) >= 0 and self._is_own(row, context, end - 1)

    def _is_own(self, row: PlanRow, context: Sequence[int], query: int) -> bool:
        """Whether all of a context that a query sees was computed from nothing but this context."""
        size, right = self.limits.page_size, traces(context)
        return all(
            self.contents[page_of(row, table, at // size)][at % size] == (table, right[at])
            for table, window in enumerate(self.limits.windows)
            for at in range(0 if window is None else max(query - window + 1, 0), len(context))
        )
