"""Checkpoint folders whose matrices are quantised: GPTQ, AWQ, compressed-tensors and others, by ``quantization_config``.

Each method is read as what it means: integer codes, and for groups along the depth a scale and a zero. Where the CPU kernels have a
type for that, a matrix is handed on as blocks of it (`asurge.ops.grouped`) and multiplied as it is; otherwise it is made
floating-point numbers, and a warning says so. Layouts as in AutoGPTQ's and AutoAWQ's checkpoints and in compressed-tensors 0.20.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from asurge.errors import ModelLoadError, WeightsError
from asurge.models.weights.checkpoint import Source
from asurge.ops.grouped import GROUP, MatrixType, RawMatrix

Array = npt.NDArray[Any]
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of 32 bits AWQ keeps each of eight neighbours."""

E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
"""The magnitudes of FP4; bit 3 is the sign."""

NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    np.float32,
)  # fmt: skip
"""Normal float in 4 bits (Dettmers et al., 2023)."""


class Folder(Protocol):
    """The tensors of a folder by the names they have there."""

    def names(self) -> Iterator[str]:
        """The names of all tensors."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, as it is stored."""
        ...

    def array(self, name: str) -> Array:
        """A tensor as it is stored, mapped; types that NumPy lacks as `ml_dtypes` has them."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Affine:
    """A matrix as codes: weight = (code - zero) * scale.

    Attributes:
        shape: ``[out, in]``.
        codes: unpacks them, uint8 or int8 of this shape.
        scales: float32 ``[out, groups]``.
        zeros: float32 ``[out, groups]``, whole numbers; or one number for all.
        bits: of a code.
        group_of: int32 ``[in]``, the group of each place along the depth, where groups are no neighbours (GPTQ's ``desc_act``).
    """

    shape: tuple[int, int]
    codes: Callable[[], Array]
    scales: Array
    zeros: Array | float
    bits: int
    group_of: Array | None = None

    def floats(self) -> npt.NDArray[np.float32]:
        """The weights in float32."""
        group_of = np.arange(self.shape[1]) // self._group if self.group_of is None else self.group_of
        zeros = self.zeros if isinstance(self.zeros, float) else self.zeros[:, group_of]
        wide: npt.NDArray[np.float32] = (self.codes().astype(np.float32) - zeros) * self.scales[:, group_of]
        return wide

    @property
    def block_type(self) -> str | None:
        """The type of blocks that kernels multiply; None if there is none."""
        if self.group_of is not None or self._group % GROUP or self.shape[1] % GROUP:
            return None
        if isinstance(self.zeros, float):  # the same zero everywhere
            return {8: "Q8_0", 4: "Q4_0" if self.zeros == 8.0 else None}.get(self.bits)
        return "Q4_1" if self.bits == 4 else None

    def blocks(self) -> npt.NDArray[np.uint8]:
        """Rows of blocks of this type."""
        scales = _bytes(self._by_block(self.scales))
        codes = self.codes().reshape(len(scales), -1, GROUP)
        if self.block_type == "Q8_0":
            signed = codes.astype(np.int16) - int(float(self.zeros))
            return _rows(scales, signed.astype(np.int8).view(np.uint8))
        if self.block_type == "Q4_0":
            return _rows(scales, _halves(codes))
        return _rows(scales, _bytes(self._by_block(-self.zeros * self.scales)), _halves(codes))

    @property
    def _group(self) -> int:
        return self.shape[1] // self.scales.shape[1]

    def _by_block(self, by_group: Array) -> npt.NDArray[np.float16]:
        return np.repeat(by_group, self._group // GROUP, axis=1).astype(np.float16)


@dataclasses.dataclass(frozen=True, slots=True)
class MxFp4:
    """FP4 with a power of two for each 32 numbers.

    Attributes:
        packed: pairs of codes, uint8 ``[out, in / 2]``.
        exponents: uint8 ``[out, in / 32]``, biased by 127.
    """

    packed: Array
    exponents: Array
    block_type = "MXFP4"

    def floats(self) -> npt.NDArray[np.float32]:
        """The weights in float32."""
        scales = np.ldexp(np.float32(1), self.exponents.astype(np.int32) - 127)
        return _fp4(_pairs(self.packed)) * np.repeat(scales, GROUP, axis=1)

    def blocks(self) -> npt.NDArray[np.uint8]:
        """Rows of blocks of GGUF's MXFP4."""
        codes = _pairs(self.packed).reshape(len(self.packed), -1, GROUP)
        return _rows(self.exponents[:, :, None], _halves(codes))


@dataclasses.dataclass(frozen=True, slots=True)
class Plain:
    """A matrix that no kernel multiplies as it is."""

    floats: Callable[[], npt.NDArray[np.float32]]
    block_type = None

    def blocks(self) -> npt.NDArray[np.uint8]:
        """Nothing: there are none."""
        raise NotImplementedError("it has no type of the kernels")


Matrix = Affine | MxFp4 | Plain
Read = Callable[[Folder, str, tuple[int, int]], Matrix]
"""Reads a matrix of a shape ``[out, in]`` by the name of its module."""


@dataclasses.dataclass(frozen=True, slots=True)
class Method:
    """A quantisation method, and how its matrices are read.

    Attributes:
        name: as warnings have it.
        parts: the ends of the names of a matrix's tensors; the first tells that it is quantised.
        codes: the end of the name of its codes.
        shape: of the codes, from that of the matrix.
        read: reads one.
    """

    name: str
    parts: tuple[str, ...]
    codes: str
    shape: Callable[[tuple[int, int]], tuple[int, ...]]
    read: Read


class QuantizedTensors:
    """The tensors of a quantised folder, by the names they would have if they were not.

    Args:
        folder: its tensors as they are.
        plain: reads those that are not quantised.
    """

    def __init__(self, path: Path, folder: Folder, plain: Any, settings: Mapping[str, Any]) -> None:
        self._path, self._folder, self._plain = path, folder, plain
        self._method = _method(path, settings)
        first = self._method.parts[0]
        self._modules = {name.removesuffix(first) for name in folder.names() if name.endswith(first)}

    def names(self) -> Iterator[str]:
        for name in self._folder.names():
            module = next((name.removesuffix(end) for end in self._method.parts if name.endswith(end)), None)
            if module is None or module not in self._modules:
                yield name
        yield from (f"{module}.weight" for module in self._modules)

    def check(self, source: Source) -> None:
        """Compare a tensor with what the model asks for, before anything is allocated; raises what readers' ``check`` does."""
        module = self._module(source)
        if module is None:
            self._plain.check(source)
            return
        if len(source.shape) != 2 or source.transposed:
            raise WeightsError(f"{self._path}: {source.name} is quantised, which is served for matrices alone")
        out, depth = source.shape
        wanted, name = self._method.shape((out, depth)), module + self._method.codes
        try:
            found = self._folder.shape(name)
        except KeyError as error:
            raise WeightsError(
                f"{self._path} lacks tensor {name}, which belongs to {source.name}: fetch it again"
            ) from error
        if found != wanted:
            raise WeightsError(
                f"{self._path}: tensor {name} has shape {list(found)}, but config.json and its quantization_config ask for {list(wanted)}: "
                "weights and config do not belong together"
            )

    def read_into(self, host: np.ndarray, source: Source) -> None:
        """A tensor as the model has it, into ``host``."""
        module = self._module(source)
        if module is None:
            self._plain.read_into(host, source)
            return
        with self._reading(source):
            floats = self._matrix(module, source).floats()
        host[:] = floats[source.row_order()] if source.order else floats

    def raw_type(self, source: Source) -> MatrixType | None:
        """The type of a matrix that kernels multiply as it is stored; None of others."""
        module = self._module(source)
        if module is None:
            return None
        with self._reading(source):
            kind = self._matrix(module, source).block_type
        return None if kind is None else MatrixType(kind, source.shape[0], source.shape[1])

    def raw(self, source: Source) -> RawMatrix:
        """A matrix that has a `raw_type`, as blocks of it."""
        module = self._module(source)
        assert module is not None, "it was asked whether it has a type"
        order = source.row_order().astype(np.int32) if source.order else None
        with self._reading(source):
            matrix = self._matrix(module, source)
            assert matrix.block_type is not None
            return RawMatrix(matrix.block_type, matrix.blocks(), source.shape[1], order)

    def stored_type(self, source: Source) -> str | None:
        """The name of the method by which a matrix is quantised; None of other tensors."""
        return None if self._module(source) is None else self._method.name

    def _matrix(self, module: str, source: Source) -> Matrix:
        return self._method.read(self._folder, module, (source.shape[0], source.shape[1]))

    @contextmanager
    def _reading(self, source: Source) -> Iterator[None]:
        """Wraps the reading of a matrix, whose parts may not fit each other."""
        try:
            yield
        except (KeyError, ValueError, IndexError) as error:
            raise WeightsError(
                f"{self._path}: the parts of {source.name} do not make a matrix of {list(source.shape)} ({error}): fetch it again"
            ) from error

    def _module(self, source: Source) -> str | None:
        module = source.name.removesuffix(".weight")
        return module if module in self._modules else None


def _method(path: Path, settings: Mapping[str, Any]) -> Method:
    """The method that a ``quantization_config`` names.

    Raises:
        ModelLoadError: the method is not served.
    """
    name = str(settings.get("quant_method", "")).lower()
    parts: tuple[str, ...]
    if name == "gptq":
        bits = _bits(path, settings.get("bits"))
        parts = (".qweight", ".qzeros", ".scales", ".g_idx")
        return Method(name, parts, ".qweight", lambda shape: (shape[1] * bits // 32, shape[0]), _gptq(bits, settings))
    if name == "awq":
        parts = (".qweight", ".qzeros", ".scales")
        return Method(name, parts, ".qweight", lambda shape: (shape[1], shape[0] // 8), _awq(path, settings))
    if name == "compressed-tensors":
        return _compressed(path, settings)
    if name == "bitsandbytes" and settings.get("load_in_4bit") and settings.get("bnb_4bit_quant_type") == "nf4":
        suffixes = tuple(
            f".weight.{part}"
            for part in ("quant_state.bitsandbytes__nf4", "absmax", "quant_map", "nested_absmax", "nested_quant_map")
        )
        return Method("nf4", (*suffixes, ".weight"), ".weight", lambda shape: (math.prod(shape) // 2, 1), _nf4)
    if name == "fp8":
        return Method(name, (".weight_scale_inv", ".weight"), ".weight", _same, _fp8_blocks)
    raise ModelLoadError(
        f"{path}: quantization_config names the method {name or 'none'!r}; served are gptq, awq, compressed-tensors, bitsandbytes "
        "(nf4) and fp8: take another checkpoint, or one that is not quantised, with quantization='int4'"
    )


def _same(shape: tuple[int, int]) -> tuple[int, ...]:
    return shape


def _halved(shape: tuple[int, int]) -> tuple[int, ...]:
    return shape[0], shape[1] // 2


def _gptq(bits: int, settings: Mapping[str, Any]) -> Read:
    # The first version kept zeros less one.
    added = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
    symmetric = bool(settings.get("sym", False))

    def read(folder: Folder, module: str, shape: tuple[int, int]) -> Matrix:
        words = folder.array(f"{module}.qweight")
        scales = folder.array(f"{module}.scales").astype(np.float32).T
        zeros: Array | float = float(1 << (bits - 1))
        if not symmetric:
            found = unpack(folder.array(f"{module}.qzeros"), bits, axis=1)[:, : shape[0]].T
            zeros = (found.astype(np.int32) + added & (1 << bits) - 1).astype(np.float32)
        group_of = None
        if folder.has(f"{module}.g_idx"):
            given = folder.array(f"{module}.g_idx").astype(np.int64)
            if not np.array_equal(given, np.arange(len(given)) // (len(given) // scales.shape[1])):
                group_of = given
        return Affine(shape, lambda: unpack(words, bits, axis=0).T, scales, zeros, bits, group_of)

    return read


def _awq(path: Path, settings: Mapping[str, Any]) -> Read:
    bits = _bits(path, settings.get("bits", settings.get("w_bit")))
    if bits != 4 or str(settings.get("version", "gemm")).lower() != "gemm":
        raise ModelLoadError(
            f"{path}: AWQ is served in 4 bits and version 'gemm', not {settings.get('version')!r} in {bits}"
        )

    def read(folder: Folder, module: str, shape: tuple[int, int]) -> Matrix:
        words = folder.array(f"{module}.qweight")
        scales = folder.array(f"{module}.scales").astype(np.float32).T
        zeros: Array | float = 8.0
        if settings.get("zero_point", True):
            zeros = unpack(folder.array(f"{module}.qzeros"), 4, axis=1, order=AWQ_ORDER).T.astype(np.float32)
        return Affine(shape, lambda: unpack(words, 4, axis=1, order=AWQ_ORDER).T, scales, zeros, 4)

    return read


def _compressed(path: Path, settings: Mapping[str, Any]) -> Method:
    groups = list((settings.get("config_groups") or {}).values())
    if len(groups) != 1:
        raise ModelLoadError(
            f"{path}: compressed-tensors with {len(groups)} config_groups is not served: take one with one group"
        )
    name = str(groups[0].get("format") or settings.get("format"))
    parts: tuple[str, ...]
    weights = groups[0].get("weights") or {}
    bits, symmetric = int(weights.get("num_bits", 0)), bool(weights.get("symmetric", True))
    scale = ".weight_scale"
    if name == "pack-quantized":
        bits = _bits(path, bits)
        parts = (".weight_packed", scale, ".weight_zero_point", ".weight_shape", ".weight_g_idx")
        return Method(
            name, parts, ".weight_packed", lambda shape: (shape[0], -(-shape[1] * bits // 32)), _packed(bits, symmetric)
        )
    if name == "int-quantized" and bits == 8:
        parts = (scale, ".weight", ".weight_zero_point", ".input_scale", ".input_zero_point")
        return Method(name, parts, ".weight", _same, _int8)
    if name == "float-quantized" and bits == 8:
        return Method(name, (scale, ".weight", ".input_scale"), ".weight", _same, _fp8)
    if name == "mxfp4-pack-quantized":
        return Method(name, (".weight_packed", scale), ".weight_packed", _halved, _mxfp4)
    if name == "nvfp4-pack-quantized":
        parts = (".weight_packed", scale, ".weight_global_scale", ".input_global_scale")
        return Method(name, parts, ".weight_packed", _halved, _nvfp4)
    raise ModelLoadError(
        f"{path}: compressed-tensors' format {name!r} in {bits} bits is not served; served are pack-quantized (4, 8), int-quantized, "
        "float-quantized, mxfp4-pack-quantized and nvfp4-pack-quantized"
    )


def _packed(bits: int, symmetric: bool) -> Read:
    def read(folder: Folder, module: str, shape: tuple[int, int]) -> Matrix:
        words = folder.array(f"{module}.weight_packed")
        scales = folder.array(f"{module}.weight_scale").astype(np.float32)
        zeros: Array | float = float(1 << (bits - 1))
        if not symmetric:
            zeros = unpack(folder.array(f"{module}.weight_zero_point"), bits, axis=0)[: shape[0]].astype(np.float32)
        group_of = None
        if folder.has(f"{module}.weight_g_idx"):
            group_of = folder.array(f"{module}.weight_g_idx").astype(np.int64)
        return Affine(shape, lambda: unpack(words, bits, axis=1)[:, : shape[1]], scales, zeros, bits, group_of)

    return read


def _int8(folder: Folder, module: str, shape: tuple[int, int]) -> Matrix:
    scales = folder.array(f"{module}.weight_scale").astype(np.float32).reshape(-1, 1)
    scales = np.broadcast_to(scales, (shape[0], 1))
    return Affine(shape, lambda: folder.array(f"{module}.weight"), scales, 0.0, 8)


def _fp8(folder: Folder, module: str, shape: tuple[int, int]) -> Matrix:
    scales = folder.array(f"{module}.weight_scale").astype(np.float32)
    return Plain(lambda: folder.array(f"{module}.weight").astype(np.float32) * scales.reshape(-1, 1))


def _fp8_blocks(folder: Folder, module: str, shape: tuple[int, int]) -> Matrix:
    """A scale for each square of, as a rule, 128 by 128 (DeepSeek V3)."""
    scales = folder.array(f"{module}.weight_scale_inv").astype(np.float32)
    side = 128
    if scales.shape != (math.ceil(shape[0] / side), math.ceil(shape[1] / side)):
        raise ValueError(f"scales of {list(scales.shape)}")

    def floats() -> npt.NDArray[np.float32]:
        wide = np.repeat(np.repeat(scales, side, axis=0), side, axis=1)[: shape[0], : shape[1]]
        return folder.array(f"{module}.weight").astype(np.float32) * wide

    return Plain(floats)


def _mxfp4(folder: Folder, module: str, shape: tuple[int, int]) -> Matrix:
    return MxFp4(folder.array(f"{module}.weight_packed"), folder.array(f"{module}.weight_scale").view(np.uint8))


def _nvfp4(folder: Folder, module: str, shape: tuple[int, int]) -> Matrix:
    scales = folder.array(f"{module}.weight_scale").astype(np.float32)
    whole = float(folder.array(f"{module}.weight_global_scale").astype(np.float32).reshape(()))
    packed = folder.array(f"{module}.weight_packed")
    return Plain(lambda: _fp4(_pairs(packed)) * np.repeat(scales / whole, 16, axis=1))


def _nf4(folder: Folder, module: str, shape: tuple[int, int]) -> Matrix:
    """Blocks of 64 along the rows; their scales may be quantised themselves, in blocks of 256."""
    packed = folder.array(f"{module}.weight").reshape(-1)
    absmax = folder.array(f"{module}.weight.absmax")
    if absmax.dtype == np.uint8:
        state = _quant_state(folder.array(f"{module}.weight.quant_state.bitsandbytes__nf4"))
        table = folder.array(f"{module}.weight.nested_quant_map").astype(np.float32)
        outer = folder.array(f"{module}.weight.nested_absmax").astype(np.float32)
        size = int(state.get("nested_blocksize", 256))
        absmax = table[absmax] * np.repeat(outer, size)[: len(absmax)] + np.float32(state.get("nested_offset", 0.0))

    def floats() -> npt.NDArray[np.float32]:
        codes = np.stack((packed >> 4, packed & 15), axis=1).reshape(-1)
        return (NF4[codes].reshape(len(absmax), -1) * absmax.astype(np.float32)[:, None]).reshape(shape)

    return Plain(floats)


def _quant_state(array: Array) -> dict[str, Any]:
    return dict(json.loads(bytes(array.astype(np.uint8)).decode()))


def unpack(words: Array, bits: int, axis: int, order: tuple[int, ...] | None = None) -> npt.NDArray[np.uint8]:
    """Codes from words of 32 bits, the lowest first, along an axis.

    Args:
        order: where in a word each of its codes is; None: one after the other.
    """
    per_word = 32 // bits
    places = np.asarray(order if order is not None else range(per_word), np.uint32) * bits
    moved = np.moveaxis(words.view(np.uint32), axis, -1)[..., None] >> places & np.uint32((1 << bits) - 1)
    codes = moved.astype(np.uint8).reshape(*moved.shape[:-2], -1)
    return np.ascontiguousarray(np.moveaxis(codes, -1, axis))


def _bits(path: Path, bits: Any) -> int:
    if bits not in (4, 8):
        raise ModelLoadError(f"{path}: weights in {bits} bits are not served: 4 and 8 are")
    return int(bits)


def _pairs(packed: Array) -> npt.NDArray[np.uint8]:
    """Nibbles of bytes, the low one first."""
    out = np.stack((packed & 15, packed >> 4), axis=-1)
    return out.reshape(*packed.shape[:-1], -1).astype(np.uint8)


def _fp4(nibbles: Array) -> npt.NDArray[np.float32]:
    return np.where(nibbles & 8, -E2M1[nibbles & 7], E2M1[nibbles & 7])


def _bytes(halves: Array) -> npt.NDArray[np.uint8]:
    """Float16 ``[out, groups]`` as bytes ``[out, groups, 2]``."""
    return np.ascontiguousarray(halves[..., None]).view(np.uint8)


def _halves(codes: Array) -> npt.NDArray[np.uint8]:
    """Nibbles ``[out, blocks, 32]`` as GGUF has them: those of both halves of a block share bytes."""
    nibbles = codes.astype(np.uint8)
    halves: npt.NDArray[np.uint8] = nibbles[:, :, :16] | nibbles[:, :, 16:] << np.uint8(4)
    return halves


def _rows(*parts: Array) -> npt.NDArray[np.uint8]:
    """Rows of blocks from the parts ``[out, blocks, bytes]`` of each."""
    return np.concatenate(parts, axis=2).reshape(len(parts[0]), -1)
