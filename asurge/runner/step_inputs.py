"""Pack a step's inputs into one int32 array: one upload, whatever the step holds.

Layout: fields ``[rows, fields]``, then page tables ``[tables, rows, columns]``, then prefill tokens ``[prefill_rows * prefill_len]``,
and finally two flags of the whole step. Floats travel as their bit patterns.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from asurge.ops.sampling import SamplingInputs
from asurge.plan import DEVICE_STOPS, StepPlan
from asurge.runner.buckets import PlacedRow, StepShape, place
from asurge.runner.packed_fields import SAMPLING_TYPES, PackedFields, Views

STOPS = tuple(f"stop_{index}" for index in range(DEVICE_STOPS))
FIELDS = PackedFields(
    {"slot": np.int32, "start": np.int32, "length": np.int32, "decode_steps": np.int32}
    | SAMPLING_TYPES
    | dict.fromkeys(STOPS, np.int32)
)
_FLAGS = 2


class TableShape(NamedTuple):
    """Page tables of a row, and entries of each."""

    tables: int
    columns: int


@dataclasses.dataclass(frozen=True, slots=True)
class StepInputs:
    """A packed step, unpacked on the device. Rows that only pad have length 0 and the scratch slot.

    ``slot`` is where the row's token is written, the scratch slot where it does not count (``counts``, bool), and where a decode
    row takes its token from. ``stops`` is ``[DEVICE_STOPS, rows]``, ``page_tables`` is ``[tables, rows, columns]``.
    ``reads_all`` and ``samples_nothing`` are scalars: hidden states of all tokens will be read, not only of those after which a
    token is sampled; no row samples, or sampling is apart.
    """

    slot: jax.Array
    counts: jax.Array
    start: jax.Array
    length: jax.Array
    sampling: SamplingInputs
    decode_steps: jax.Array
    stops: jax.Array
    page_tables: jax.Array
    tokens: jax.Array
    reads_all: jax.Array
    samples_nothing: jax.Array


def packed_size(shape: StepShape, tables: TableShape) -> int:
    """Elements of a packed step."""
    return _table_end(shape, tables) + shape.prefill_rows * shape.prefill_len + _FLAGS


def _table_end(shape: StepShape, tables: TableShape) -> int:
    return shape.rows * (len(FIELDS) + tables.tables * tables.columns)


def pack(
    plan: StepPlan, shape: StepShape, tables: TableShape, scratch_slot: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """A plan as ``[packed_size]`` int32, and for each plan row, the device row that holds its token."""
    rows, columns, first_entry = shape.rows, tables.columns, shape.rows * len(FIELDS)
    packed = np.zeros(packed_size(shape, tables), np.int32)
    views = FIELDS.views(packed[:first_entry].reshape(rows, len(FIELDS)))
    table_end = _table_end(shape, tables)
    tokens = packed[table_end:-_FLAGS].reshape(shape.prefill_rows, shape.prefill_len)
    packed[-_FLAGS:] = plan.reads_all, plan.samples_apart or plan.samples_nothing
    FIELDS.write(views, slice(None), slot=scratch_slot, top_p=1.0, **dict.fromkeys(STOPS, -1))
    sampled_at = []
    for part in place(plan, shape):
        _fill(part, views)
        row, index = part.row, part.at
        entry = first_entry + index * columns
        for first, pages in row.page_tables:
            begin = entry + first
            packed[begin : begin + len(pages)] = pages
            entry += rows * columns
        if row.token_ids is not None:
            tokens[index - shape.decode_rows, : part.length] = row.token_ids[part.begin : part.begin + part.length]
        if part.last:
            sampled_at.append(index)
            if row.samples:
                FIELDS.write(views, index, slot=row.slot)
    return packed, np.asarray(sampled_at, np.int32)


def _fill(part: PlacedRow, views: Views) -> None:
    row = part.row
    FIELDS.write(views, part.at, start=row.start + part.begin, length=part.length, decode_steps=row.decode_steps)
    if row.decode_steps > 1:
        FIELDS.write(views, part.at, **dict(zip(STOPS, row.stop_token_ids, strict=False)))
    if row.samples and part.last and row.sampling.temperature > 0:
        FIELDS.write_sampling(views, part.at, row.sampling)


def unpack(packed: jax.Array, shape: StepShape, tables: TableShape, scratch_slot: int) -> StepInputs:
    """The inverse of `pack`, on the device."""
    rows, first_entry = shape.rows, shape.rows * len(FIELDS)
    fields = FIELDS.unpack(packed[:first_entry].reshape(rows, len(FIELDS)))
    table_end = _table_end(shape, tables)
    parameters = {name: fields[name] for name in SAMPLING_TYPES}
    return StepInputs(
        slot=fields["slot"],
        counts=fields["slot"] != scratch_slot,
        start=fields["start"],
        length=fields["length"],
        sampling=SamplingInputs(**parameters, position=fields["start"] + fields["length"]),
        decode_steps=fields["decode_steps"],
        stops=jnp.stack([fields[name] for name in STOPS]),
        page_tables=packed[first_entry:table_end].reshape(tables.tables, rows, tables.columns),
        tokens=packed[table_end:-_FLAGS],
        reads_all=packed[-2],
        samples_nothing=packed[-1],
    )
