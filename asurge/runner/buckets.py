"""The few shapes a step can have. Each is compiled ahead of time; none later."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from asurge.plan import PlanRow, StepPlan

LONG_ROW = 128
"""Query rows of long prefill chunks: each gathers its context's pages once, so longer rows gather less."""


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class StepShape:
    """A step of ``decode_rows`` single tokens and ``prefill_rows`` rows of up to ``prefill_len`` tokens."""

    decode_rows: int
    prefill_rows: int = 0
    prefill_len: int = 0

    @property
    def rows(self) -> int:
        return self.decode_rows + self.prefill_rows

    @property
    def tokens(self) -> int:
        """Tokens the linear layers compute, padding included."""
        return self.decode_rows + self.prefill_rows * self.prefill_len

    def first_token(self, row: int) -> int:
        """Index of a prefill row's first token among all tokens of the step."""
        return self.decode_rows + (row - self.decode_rows) * self.prefill_len

    def holds(self, decode: int, chunks: Sequence[int]) -> bool:
        """Whether ``decode`` rows and prefill chunks of these lengths fit."""
        if decode > self.decode_rows:
            return False
        if not chunks:
            return True
        if not self.prefill_len:
            return False
        return sum(-(-chunk // self.prefill_len) for chunk in chunks) <= self.prefill_rows


class ShapeBuckets:
    """All shapes of one engine, cheapest first.

    Where padding is computed, decode-only steps come in sizes that differ by factors of four; steps with prefill in two decode
    sizes and three layouts: a little prefill, many short chunks, and few long ones. Where kernels leave padding out, the largest
    shape costs a single row 1.5 ms on a model of 30 layers, and compiling and warming up more shapes costs more: three are left.
    The layout of many short chunks holds whatever the scheduler plans within its budget, because a chunk costs a multiple of the
    quantum there.
    """

    def __init__(
        self, max_num_seqs: int, max_num_batched_tokens: int, quantum: int, *, skips_padding: bool = False
    ) -> None:
        most = max_num_batched_tokens // quantum
        if skips_padding:
            shapes = {StepShape(2), StepShape(max(max_num_seqs, 2)), StepShape(max(max_num_seqs, 2), most, quantum)}
        else:
            shapes = {StepShape(rows) for rows in _powers(2, max_num_seqs, 4)}
            layouts = {(min(4, most), quantum), (most, quantum)}
            if max_num_batched_tokens >= LONG_ROW > quantum:
                layouts.add((max_num_batched_tokens // LONG_ROW, LONG_ROW))
            for decode in {min(8, max_num_seqs), max_num_seqs}:
                shapes |= {StepShape(decode, rows, length) for rows, length in layouts}
        # Equal token counts: fewer, longer rows gather less.
        self.shapes = tuple(sorted(shapes, key=lambda shape: (shape.tokens, shape.prefill_rows)))

    def pick(self, plan: StepPlan) -> StepShape:
        """The cheapest shape that holds a plan."""
        chunks = [row.num_tokens for row in plan.prefill]
        for shape in self.shapes:
            if shape.holds(len(plan.decode), chunks):
                return shape
        raise ValueError(f"no step shape holds {len(plan.decode)} decode rows and prefill chunks {chunks}")


class PlacedRow(NamedTuple):
    """A plan row, or part of a long chunk, on one device row."""

    row: PlanRow
    at: int
    begin: int
    length: int
    last: bool
    """Whether this part ends the chunk, so that its token is the row's."""


def place(plan: StepPlan, shape: StepShape) -> list[PlacedRow]:
    """Lay a plan out over a shape's device rows; chunks longer than a row continue on the next."""
    placed = [PlacedRow(row, index, 0, 1, True) for index, row in enumerate(plan.decode)]
    index = shape.decode_rows
    for row in plan.prefill:
        for begin in range(0, row.num_tokens, shape.prefill_len):
            length = min(shape.prefill_len, row.num_tokens - begin)
            placed.append(PlacedRow(row, index, begin, length, begin + length == row.num_tokens))
            index += 1
    return placed


def _powers(first: int, last: int, factor: int) -> list[int]:
    sizes = []
    while first < last:
        sizes.append(first)
        first *= factor
    # A batch of one falls off XLA:CPU's fast path, so even a single slot gets two rows.
    return [*sizes, max(last, 2)]
