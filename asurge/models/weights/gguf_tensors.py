"""The tensors of a GGUF file under the names and in the form that checkpoints have on the hub."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, dequantize, get_tensor_name_map

from asurge.errors import WeightsError
from asurge.gguf.checkpoint import GgufCheckpoint
from asurge.gguf.file import GgufTensor
from asurge.models.config import DecoderConfig
from asurge.models.weights.checkpoint import Source
from asurge.ops.grouped import TYPES, MatrixType, RawMatrix

SERVED_TYPES = tuple(
    GGMLQuantizationType[name]
    for name in (
        "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 NVFP4".split()  # noqa: SIM905
    )
)
"""Types whose numbers can be read; the reference is the ``gguf`` package's ``dequantize``."""

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")
_IN_METADATA = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight")
_STRIP_NUMBERS = 1 << 20
"""Numbers that are made float32 at a time, to bound the memory that takes."""


class GgufTensors:
    """A checkpoint's tensors by Hugging Face's names.

    Args:
        wanted: the names that the model asks for.
    """

    def __init__(self, checkpoint: GgufCheckpoint, config: DecoderConfig, wanted: Collection[str]) -> None:
        architecture = {name: number for number, name in MODEL_ARCH_NAMES.items()}[checkpoint.architecture]
        names = get_tensor_name_map(architecture, config.num_layers)
        self._path, self._offset_norms = checkpoint.path, config.norm_offset
        self._found: dict[str, tuple[GgufTensor, int | None]] = {}
        used = set()
        for name in wanted:
            whole, expert = name, None
            if (match := _EXPERT.fullmatch(name)) is not None:  # all experts' matrices are one tensor
                whole, expert = f"{match[1]}.{match[3]}", int(match[2])
            own = names.get_name(whole, try_suffixes=(".weight", ".bias"))
            if own is not None and own in checkpoint.tensors:
                self._found[name] = checkpoint.tensors[own], expert
                used.add(own)
        others = checkpoint.tensors.keys() - used
        self._unexpected = {name for name in others if _IN_METADATA.fullmatch(name) is None}

    def names(self) -> Iterator[str]:
        """Hugging Face's names of what was found, and llama.cpp's of what was not asked for."""
        yield from self._found
        yield from self._unexpected

    def check(self, source: Source) -> None:
        """Compare a tensor with what the model asks for, before anything is allocated.

        Raises:
            WeightsError: its shape does not fit, or its type is not served.
        """
        tensor, expert = self._found[source.name]
        where = f"{tensor.path}: tensor {tensor.name} ({tensor.type.name}, offset {tensor.offset})"
        if tensor.type not in SERVED_TYPES:
            served = ", ".join(kind.name for kind in SERVED_TYPES)
            raise WeightsError(f"{where} is of a type that is not served: take a file with {served}")
        shape = tensor.shape if expert is None else tensor.shape[1:]
        if shape != source.shape or (expert is not None and not expert < tensor.shape[0]):
            raise WeightsError(
                f"{where} has shape {list(tensor.shape)}, but the metadata asks for {list(source.shape)} as {source.name}: "
                "the file is damaged, or made by a converter that is not known"
            )

    def read_into(self, host: np.ndarray, source: Source) -> None:
        """The numbers of a tensor as the model has them, into ``host``, of its `Source.filled` shape."""
        tensor, _ = self._found[source.name]
        rows = self.rows(source)
        flat = host.reshape(len(rows), -1)
        strip = max(_STRIP_NUMBERS // flat.shape[1], 1)
        for at in range(0, len(rows), strip):
            numbers = dequantize(np.ascontiguousarray(rows[at : at + strip]), tensor.type)
            if self._offset_norms and source.name.endswith("norm.weight"):
                numbers = numbers - 1.0  # the converter has added it
            flat[at : at + strip] = numbers.reshape(-1, flat.shape[1])

    def raw_type(self, source: Source) -> MatrixType | None:
        """The type of a matrix that kernels multiply as it is stored; None of others."""
        name = self._found[source.name][0].type.name
        return MatrixType(name, source.shape[0], source.shape[-1]) if name in TYPES else None

    def raw(self, source: Source) -> RawMatrix:
        """A matrix that has a `raw_type`, as it is stored."""
        rows = self._stored_rows(source)
        order = None if not source.order else source.row_order(len(rows)).astype(np.int32)
        return RawMatrix(self._found[source.name][0].type.name, rows, source.shape[-1], order)

    def stored_type(self, source: Source) -> str | None:
        """The type of a tensor that is quantised; None of floating-point numbers."""
        name: str = self._found[source.name][0].type.name
        return None if name in ("F32", "F16", "BF16") else name

    def rows(self, source: Source) -> np.ndarray:
        """The bytes of each row as the file has them, ``uint8 [rows, row_bytes]``, in the model's order."""
        rows = self._stored_rows(source)
        return rows[source.row_order(len(rows))] if source.order else rows

    def _stored_rows(self, source: Source) -> np.ndarray:
        tensor, expert = self._found[source.name]
        data = tensor.data() if expert is None else tensor.data()[expert]
        return data.reshape(math.prod(data.shape[:-1]), data.shape[-1])
