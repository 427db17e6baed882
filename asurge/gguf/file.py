"""The header of a GGUF file: metadata, and where each tensor lies. Nothing is allocated before its size is checked.

The format is that of ggml's ``docs/gguf.md``, versions 2 and 3, little-endian. The reader of the ``gguf`` package makes NumPy views of
each string of a vocabulary: 2.3 s for 49,152 tokens and 10.9 s for 262,144 (gguf 0.19.0, Zen 4), where this takes 0.03 and 0.15 s.
Types, block sizes and tensor names are the package's.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from asurge.errors import ModelLoadError, WeightsError
from asurge.model_paths import check_gguf

_MAX_ENTRIES = 1 << 16
_MAX_KEY = 1 << 12
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT, _MAX_ALIGNMENT = 32, 1 << 16
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
"""NumPy's names for the numbers of metadata, by GGUF's."""


@dataclasses.dataclass(frozen=True, slots=True)
class GgufTensor:
    """Type, shape and offset of a tensor in a file.

    Attributes:
        shape: ``[rows, columns]``, the last axis contiguous and, where the type has blocks, cut into blocks.
        offset: in bytes, from the beginning of the file.
    """

    path: Path
    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        """The size of the tensor in the file."""
        block, size = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * size

    @property
    def row_bytes(self) -> int:
        """The size of one row (of the last axis) in the file."""
        block, size = GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // block * size

    def data(self) -> np.ndarray:
        """The bytes of each row, ``uint8 [..., row_bytes]``, mapped and not read.

        Raises:
            WeightsError: the file has become shorter.
        """
        try:
            return np.memmap(self.path, np.uint8, "r", self.offset, (*self.shape[:-1], self.row_bytes))
        except (ValueError, OSError) as error:
            raise WeightsError(
                f"{self.path} has become shorter since it was opened ({error}): fetch it again, and start when it is all there"
            ) from error


@dataclasses.dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a file: metadata and tensors.

    Attributes:
        metadata: values by key; arrays of numbers are NumPy arrays, arrays of strings lists.
        tensors: by name, in the order of the file.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_file(path: Path) -> GgufFile:
    """The header of a file.

    Raises:
        ModelLoadError: it cannot be read, is no GGUF file, or of a version or byte order that is not served.
        WeightsError: its header is damaged, or a tensor does not lie within the file.
    """
    version = check_gguf(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(path, data).read(version)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read ({error}): fetch it again") from error


class _Header:
    """Reads a header from front to back.

    Args:
        data: the whole file, mapped.
    """

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._size, self._at = path, data, len(data), 0

    def read(self, version: int) -> GgufFile:
        self._take(8, "the version")
        num_tensors, num_keys = self._count("tensors"), self._count("metadata entries")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string("a metadata key", _MAX_KEY)
            if key in metadata:
                raise self._damaged(f"the metadata key {key!r} occurs twice")
            metadata[key] = self._value(self._unsigned(4, f"the type of {key}"), key)
        infos = [self._tensor_info() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 8 <= alignment <= _MAX_ALIGNMENT or alignment % 8:
            raise self._damaged(f"general.alignment={alignment!r} must be a multiple of 8 up to {_MAX_ALIGNMENT}")
        begin = -(-self._at // alignment) * alignment
        return GgufFile(self._path, version, metadata, self._placed(infos, begin, alignment))

    def _placed(
        self, infos: list[tuple[str, GGMLQuantizationType, tuple[int, ...], int]], begin: int, alignment: int
    ) -> dict[str, GgufTensor]:
        """The tensors, each within the file and none over another."""
        found: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in infos:
            if name in found:
                raise self._damaged(f"tensor {name!r} occurs twice")
            tensor = found[name] = GgufTensor(self._path, name, kind, shape, begin + offset)
            where = f"tensor {name!r} ({kind.name}, offset {tensor.offset})"
            if offset % alignment:
                raise self._damaged(f"{where} is not aligned to {alignment} bytes")
            if tensor.offset + tensor.num_bytes > self._size:
                raise self._damaged(f"{where} ends at byte {tensor.offset + tensor.num_bytes} of {self._size}")
        end, before = 0, ""
        for tensor in sorted(found.values(), key=lambda one: one.offset):
            if tensor.offset < end:
                raise self._damaged(
                    f"tensor {tensor.name!r} (offset {tensor.offset}) overlaps {before!r}, which ends at {end}"
                )
            end, before = tensor.offset + tensor.num_bytes, tensor.name
        return found

    def _tensor_info(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
        name = self._string("a tensor's name", _MAX_KEY)
        count = self._unsigned(4, f"the dimensions of {name}")
        if not 1 <= count <= _MAX_DIMENSIONS:
            raise self._damaged(f"tensor {name!r} has {count} dimensions: 1 to {_MAX_DIMENSIONS} are possible")
        # GGUF gives the contiguous axis first.
        shape = tuple(self._unsigned(8, f"the shape of {name}") for _ in range(count))[::-1]
        number, offset = self._unsigned(4, f"the type of {name}"), self._unsigned(8, f"the offset of {name}")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise WeightsError(
                f"{self._path}: tensor {name!r} (offset {offset}) has type {number}, which is not known: convert the model "
                "to Q4_K_M or another common type"
            ) from None
        block = GGML_QUANT_SIZES[kind][0]
        if math.prod(shape) == 0 or math.prod(shape) // block > self._size or shape[-1] % block:
            raise self._damaged(f"tensor {name!r} ({kind.name}) cannot have the shape {list(shape)}")
        return name, kind, shape, offset

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string(key)
        if kind in _SCALARS:
            return self._numbers(kind, 1, key)[0].item()
        if kind != _ARRAY:
            raise self._damaged(f"metadata {key} has the unknown type {kind}")
        inner, count = self._unsigned(4, key), self._unsigned(8, key)
        if inner == _STRING:
            return self._strings(count, key)
        if inner not in _SCALARS:
            raise self._damaged(f"metadata {key} is an array of the unknown type {inner}")
        return self._numbers(inner, count, key)

    def _numbers(self, kind: int, count: int, what: str) -> np.ndarray:
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self._take(count * dtype.itemsize, what), dtype)

    def _strings(self, count: int, what: str) -> list[str]:
        """An array of strings; a vocabulary has hundreds of thousands, so this does not call `_string`."""
        if count > (self._size - self._at) // 8:
            raise self._damaged(f"{what} is said to have {count} entries")
        data, at, size, length_at = self._data, self._at, self._size, struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            if at + 8 > size:
                raise self._cut_off(what)
            (length,) = length_at(data, at)
            at += 8
            if length > size - at:
                raise self._cut_off(what)
            found.append(data[at : at + length].decode("utf-8", "replace"))
            at += length
        self._at = at
        return found

    def _string(self, what: str, most: int | None = None) -> str:
        length = self._unsigned(8, what)
        if most is not None and length > most:
            raise self._damaged(f"{what} is said to have {length} bytes")
        return self._take(length, what).decode("utf-8", "replace")

    def _count(self, what: str) -> int:
        count = self._unsigned(8, f"the number of {what}")
        if count > _MAX_ENTRIES:
            raise self._damaged(f"it is said to have {count} {what}: at most {_MAX_ENTRIES} are read")
        return count

    def _unsigned(self, size: int, what: str) -> int:
        return int.from_bytes(self._take(size, what), "little")

    def _take(self, size: int, what: str) -> bytes:
        begin, self._at = self._at, self._at + size
        if self._at > self._size:
            raise self._cut_off(what)
        return self._data[begin : self._at]

    def _cut_off(self, what: str) -> WeightsError:
        return self._damaged(f"it ends within {what}, at byte {self._size}")

    def _damaged(self, why: str) -> WeightsError:
        return WeightsError(f"{self._path} is not a whole GGUF file: {why}. Fetch it again")
