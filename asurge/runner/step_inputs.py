"""One step's inputs as one int32 array: one upload, whatever the step holds.

Layout: fields of ``[rows]``, then page tables ``[tables, rows, columns]``, then prefill tokens ``[prefill_rows * prefill_len]``,
and finally two flags of the whole step. Floats travel as their bit patterns.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from asurge.plan import DEVICE_STOPS, StepPlan
from asurge.runner.buckets import PlacedRow, StepShape, place

_SLOT, _START, _LENGTH, _TEMPERATURE, _TOP_K, _TOP_P, _MIN_P, _SEED, _DRAWS, _STOPS = range(10)
FIELDS = _STOPS + DEVICE_STOPS
_FLAGS = 2


class TableShape(NamedTuple):
    """Page tables of a row, and entries of each."""

    tables: int
    columns: int


@dataclasses.dataclass(frozen=True, slots=True)
class StepInputs:
    """A packed step, unpacked on the device. Rows that only pad have length 0 and the scratch slot.

    ``slot`` is where the row's draw is written, the scratch slot where it does not count (``counts``, bool), and where a decode
    row takes its token from. ``stops`` is ``[DEVICE_STOPS, rows]``, ``page_tables`` is ``[tables, rows, columns]``.
    ``reads_all`` and ``draws_nothing`` are scalars: hidden states of all tokens will be read, not only of those after which a
    token is drawn; no row draws, or the draws are apart.
    """

    slot: jax.Array
    counts: jax.Array
    start: jax.Array
    length: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    seed: jax.Array
    draws: jax.Array
    stops: jax.Array
    page_tables: jax.Array
    tokens: jax.Array
    reads_all: jax.Array
    draws_nothing: jax.Array


def packed_size(shape: StepShape, tables: TableShape) -> int:
    """Elements of a packed step."""
    return _table_end(shape, tables) + shape.prefill_rows * shape.prefill_len + _FLAGS


def _table_end(shape: StepShape, tables: TableShape) -> int:
    return shape.rows * (FIELDS + tables.tables * tables.columns)


def pack(
    plan: StepPlan, shape: StepShape, tables: TableShape, scratch_slot: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """A plan as ``[packed_size]`` int32, and for each plan row, the device row that holds its draw."""
    rows, columns, first_entry = shape.rows, tables.columns, shape.rows * FIELDS
    packed = np.zeros(packed_size(shape, tables), np.int32)
    fields = packed[: rows * FIELDS].reshape(FIELDS, rows)
    floats = fields.view(np.float32)
    table_end = _table_end(shape, tables)
    tokens = packed[table_end:-_FLAGS].reshape(shape.prefill_rows, shape.prefill_len)
    packed[-_FLAGS:] = plan.reads_all, plan.draws_apart or plan.draws_nothing
    fields[_SLOT] = scratch_slot
    fields[_STOPS:] = -1
    floats[_TOP_P] = 1.0
    drawn_at = []
    for part in place(plan, shape):
        _fill(part, fields, floats)
        row, index = part.row, part.at
        entry = first_entry + index * columns
        for first, pages in row.page_tables:
            begin = entry + first
            packed[begin : begin + len(pages)] = pages
            entry += rows * columns
        if row.token_ids is not None:
            tokens[index - shape.decode_rows, : part.length] = row.token_ids[part.begin : part.begin + part.length]
        if part.last:
            drawn_at.append(index)
            if row.samples:
                fields[_SLOT, index] = row.slot
    return packed, np.asarray(drawn_at, np.int32)


def _fill(part: PlacedRow, fields: npt.NDArray[np.int32], floats: npt.NDArray[np.float32]) -> None:
    row, index = part.row, part.at
    fields[_START, index] = row.start + part.begin
    fields[_LENGTH, index] = part.length
    fields[_DRAWS, index] = row.draws
    if row.draws > 1:
        for field, token in zip(range(_STOPS, FIELDS), row.stop_token_ids, strict=False):
            fields[field, index] = token
    if row.samples and part.last and row.sampling.temperature > 0:
        sampling = row.sampling
        floats[_TEMPERATURE, index] = sampling.temperature
        fields[_TOP_K, index] = sampling.top_k
        floats[_TOP_P, index] = sampling.top_p
        floats[_MIN_P, index] = sampling.min_p
        fields.view(np.uint32)[_SEED, index] = fold_seed(sampling.seed)


def fold_seed(seed: int) -> int:
    """A 64-bit seed as the 32 bits that a draw takes."""
    return (seed ^ (seed >> 32)) & 0xFFFFFFFF


def unpack(packed: jax.Array, shape: StepShape, tables: TableShape, scratch_slot: int) -> StepInputs:
    """The inverse of `pack`, on the device."""
    rows = shape.rows
    fields = packed[: rows * FIELDS].reshape(FIELDS, rows)
    table_end = _table_end(shape, tables)
    return StepInputs(
        slot=fields[_SLOT],
        counts=fields[_SLOT] != scratch_slot,
        start=fields[_START],
        length=fields[_LENGTH],
        temperature=lax.bitcast_convert_type(fields[_TEMPERATURE], jnp.float32),
        top_k=fields[_TOP_K],
        top_p=lax.bitcast_convert_type(fields[_TOP_P], jnp.float32),
        min_p=lax.bitcast_convert_type(fields[_MIN_P], jnp.float32),
        seed=lax.bitcast_convert_type(fields[_SEED], jnp.uint32),
        draws=fields[_DRAWS],
        stops=fields[_STOPS:],
        page_tables=packed[rows * FIELDS : table_end].reshape(tables.tables, rows, tables.columns),
        tokens=packed[table_end:-_FLAGS],
        reads_all=packed[-2],
        draws_nothing=packed[-1],
    )
