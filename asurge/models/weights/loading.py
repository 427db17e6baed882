"""Checkpoints into device arrays, one parameter at a time, through memory maps. Nothing is ever unpickled.

A model is opened first, and its weights are read as they are asked for: the CPU kernels take them from the files straight to where
products read them (`asurge.models.weights.packing`)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from asurge.errors import WeightsError
from asurge.models.config import DecoderConfig
from asurge.models.decoder import Decoder
from asurge.models.families.registry import family_for
from asurge.models.formats.tiles import room_for
from asurge.models.weights.checkpoint import Source, checkpoint_table, is_ignored
from asurge.models.weights.source import read_config
from asurge.ops.grouped import MatrixType, RawMatrix

if TYPE_CHECKING:
    from asurge.gguf.checkpoint import GgufCheckpoint

_INDEX = "model.safetensors.index.json"
QUANTIZATION = "quantization_config"
"""The key of config.json that says how weights are quantised."""
_NAMED_IN_ERRORS = 8
_STRIP = 32
"""Rows transposed at a time: 3.5 times faster than a whole matrix at once (5120 x 4096 in bf16: 44 ms, 153)."""

_STORED_DTYPES = {
    "BF16": jnp.dtype(jnp.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
_OTHER_DTYPES = {
    "I32": np.dtype("<i4"),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "I64": np.dtype("<i8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
"""Of parts of quantised matrices."""


def load_model(path: Path, *, dtype: str, progress: bool = True) -> Decoder:
    """The model of a checkpoint, with weights on the device in ``dtype``; raises what `open_model` does."""
    model = open_model(path, dtype=dtype, progress=progress)
    read_all(model)
    return model


def open_model(path: Path, *, dtype: str, progress: bool = True, check: Callable[[], None] = lambda: None) -> Decoder:
    """The model of a checkpoint, whose parameters are `Stored`: still in its files, and known to fit.

    Args:
        path: a folder in Hugging Face's form, or a GGUF file.
        dtype: what weights are read as.
        progress: show a bar as they are read, on a terminal.
        check: called for each parameter that is read; ends that if it raises.

    Raises:
        UnknownArchitectureError: no family for it.
        WeightsError: files are missing or damaged, or tensors are missing, unexpected or of the wrong shape.
    """
    config, checkpoint = _opened(path)
    table = checkpoint_table(config)
    wanted = {source.name for sources in table.values() for source in sources}
    tensors = _folder_tensors(path) if checkpoint is None else _gguf_tensors(checkpoint, config, wanted)
    _check_names(tensors, wanted, config, path)
    for sources in table.values():
        for source in sources:
            tensors.check(source)
    # `eval_shape` builds the module without allocating: every leaf is then replaced.
    model = nnx.eval_shape(lambda: Decoder(config, dtype=jnp.dtype(dtype), rngs=None))
    graph, state = nnx.split(model)
    leaves = dict(nnx.to_flat_state(state))
    assert leaves.keys() == table.keys(), f"table and module differ: {leaves.keys() ^ table.keys()}"
    size = sum(int(np.prod(leaf.shape)) for leaf in leaves.values()) * jnp.dtype(dtype).itemsize
    bar: tqdm[Any] = tqdm(
        total=size, desc="Loading weights", unit="B", unit_scale=True, disable=not progress or None, leave=False
    )
    stored = [
        (path, leaf.replace(Stored(tensors, table[path], leaf.shape, jnp.dtype(dtype), bar, check)))
        for path, leaf in leaves.items()
    ]
    return nnx.merge(graph, nnx.from_flat_state(stored))


def about_checkpoint(path: Path) -> dict[str, str]:
    """Metadata of a GGUF file that people ask for: name, size, license, author and the like, and how its weights are stored.

    Nothing of a folder, whose model card is a text."""
    if path.is_dir():
        return {}
    from asurge.gguf.checkpoint import open_gguf

    checkpoint = open_gguf(path)
    kinds = ", ".join(kind for kind in checkpoint.types() if kind != "F32")
    return checkpoint.describe() | ({"weights": kinds} if kinds else {})


def model_config(path: Path) -> DecoderConfig:
    """The shape of the model in a folder or a GGUF file; raises what `open_model` does."""
    return _opened(path)[0]


def open_shape(path: Path) -> tuple[DecoderConfig, Callable[[Source], MatrixType | None]]:
    """The shape of a model, and how each of its tensors is quantised in its checkpoint (None: not at all).

    Raises what `open_model` does."""
    config, checkpoint = _opened(path)
    wanted = {source.name for sources in checkpoint_table(config).values() for source in sources}
    tensors = _folder_tensors(path) if checkpoint is None else _gguf_tensors(checkpoint, config, wanted)
    return config, tensors.raw_type


def _opened(path: Path) -> tuple[DecoderConfig, GgufCheckpoint | None]:
    """The shape of a model, and the GGUF checkpoint if it is one."""
    if path.is_dir():
        raw = read_config(path)
        raw.pop(QUANTIZATION, None)  # it says how weights are stored, not what the model computes
        return family_for(raw).config(raw), None
    from asurge.gguf.checkpoint import open_gguf  # what reads GGUF is imported for those who have it
    from asurge.models.gguf_config import gguf_config

    checkpoint = open_gguf(path)
    return gguf_config(checkpoint), checkpoint


def _folder_tensors(path: Path) -> TensorReader:
    """The tensors of a folder; dequantised where they are quantised."""
    tensors, settings = _Tensors(path), read_config(path).get(QUANTIZATION)
    if not isinstance(settings, dict):
        return tensors
    from asurge.models.weights.quantized import QuantizedTensors

    return QuantizedTensors(path, tensors, tensors, settings)


def _gguf_tensors(checkpoint: GgufCheckpoint, config: DecoderConfig, wanted: Collection[str]) -> TensorReader:
    """The tensors of a GGUF checkpoint by Hugging Face's names."""
    from asurge.models.weights.gguf_tensors import GgufTensors

    return GgufTensors(checkpoint, config, wanted)


class TensorReader(Protocol):
    """The tensors of a checkpoint by Hugging Face's names."""

    def names(self) -> Iterator[str]:
        """The names of all tensors."""
        ...

    def check(self, source: Source) -> None:
        """Compare a tensor with what the model asks for, before anything is allocated.

        Raises:
            WeightsError: its shape or type does not fit.
        """
        ...

    def read_into(self, host: np.ndarray, source: Source) -> None:
        """Read a tensor, as the model has it, into ``host``: contiguous, and of its `Source.filled` shape."""
        ...

    def raw_type(self, source: Source) -> MatrixType | None:
        """The type of a matrix that kernels multiply as it is stored; None of others. Reads no codes."""
        ...

    def raw(self, source: Source) -> RawMatrix:
        """A matrix that has a `raw_type`, as it is stored, in the model's order."""
        ...

    def stored_type(self, source: Source) -> str | None:
        """The name of the type in which a tensor is quantised; None of floating-point numbers."""
        ...


class Stored:
    """The value of a parameter that still lies in a checkpoint.

    Attributes:
        shape, dtype: as the model has it.
    """

    def __init__(
        self,
        tensors: TensorReader,
        sources: tuple[Source, ...],
        shape: tuple[int, ...],
        dtype: jnp.dtype,
        bar: tqdm[Any],
        check: Callable[[], None],
    ) -> None:
        self._tensors, self._sources, self._bar, self._check = tensors, sources, bar, check
        self.shape, self.dtype = shape, dtype

    def load(self) -> jax.Array:
        """A new array on the device."""
        host = room_for(self.shape, self.dtype)
        self.read_into(host)
        # Waiting here keeps host copies from piling up behind an asynchronous transfer.
        return jax.device_put(host).block_until_ready()

    def read_into(self, host: np.ndarray) -> None:
        """Into memory of this shape and dtype."""
        self._check()
        at = 0
        for source in self._sources:
            end = at + source.filled[0]
            self._tensors.read_into(host[at:end], source)
            at = end
        self.note_read()

    def raw_types(self) -> list[MatrixType] | None:
        """The matrices it consists of; None where kernels have no type for any of them."""
        found = [self._tensors.raw_type(source) for source in self._sources]
        types = [one for one in found if one is not None]
        return types if len(types) == len(found) else None

    def raw(self) -> list[RawMatrix]:
        """These matrices as they are stored."""
        return [self._tensors.raw(source) for source in self._sources]

    def split(self, count: int) -> list[Stored]:
        """Split it into equal matrices, which lie one below the other in it.

        Raises:
            ValueError: they do not begin where tensors of the checkpoint do.
        """
        own = len(self._sources) // count
        if own * count != len(self._sources):
            raise ValueError(f"{len(self._sources)} tensors are not {count} matrices")
        shape = (self.shape[0] // count, *self.shape[1:])
        return [
            Stored(self._tensors, self._sources[at * own : (at + 1) * own], shape, self.dtype, self._bar, self._check)
            for at in range(count)
        ]

    @property
    def splits(self) -> int:
        """Number of tensors of the checkpoint that it consists of."""
        return len(self._sources)

    def types(self) -> set[str]:
        """The types in which its matrices are quantised."""
        return {kind for source in self._sources if (kind := self._tensors.stored_type(source)) is not None}

    def note_read(self) -> None:
        """Count it as read; ends loading if that is to end."""
        self._check()
        self._bar.update(int(np.prod(self.shape)) * self.dtype.itemsize)
        if self._bar.n >= (self._bar.total or 0):
            self._bar.close()


def read_all(model: Decoder) -> None:
    """Load all parameters that are still `Stored`.

    Peak memory stays near the weights themselves: files are mapped, and each parameter is assembled and handed over before the
    next.
    """
    parameters = [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)]
    stored = [(one, value) for one in parameters if isinstance(value := one.get_value(), Stored)]
    # The largest first: while a tensor is held twice, as file and as array, little else is loaded yet.
    for parameter, value in sorted(stored, key=lambda item: -int(np.prod(item[1].shape))):
        parameter.set_value(value.load())


def value_of(parameter: nnx.Param) -> jax.Array:
    """The value on the device; read from the checkpoint if it still lies there, and then not kept."""
    value: jax.Array | Stored = parameter.get_value()
    return value.load() if isinstance(value, Stored) else value


@dataclasses.dataclass(frozen=True, slots=True)
class _Header:
    """What a file's header says about one tensor, and where in the file it begins."""

    path: Path
    shape: tuple[int, ...]
    dtype: str
    offset: int


class _Tensors:
    """All tensors of a folder, by name.

    A file is mapped for one tensor at a time: a mapping kept open would hold all pages read so far, and loading would
    peak at twice the weights (measured: 2.2 times).
    """

    def __init__(self, folder: Path) -> None:
        self._headers: dict[str, _Header] = {}
        for path in _weight_files(folder):
            try:
                with safe_open(path, framework="numpy"):  # which checks that all of it is there
                    self._headers |= _headers_of(path)
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{path} is not a whole safetensors file ({error}): fetch it again") from error

    def names(self) -> Iterator[str]:
        return iter(self._headers)

    def check(self, source: Source) -> None:
        """Compare a tensor with what the config asks for, before anything is allocated.

        Raises:
            WeightsError: its shape or dtype does not fit.
        """
        header = self._headers[source.name]
        if header.shape != source.shape:
            raise WeightsError(
                f"{header.path}: tensor {source.name} has shape {list(header.shape)}, but config.json asks for "
                f"{list(source.shape)}: weights and config do not belong together"
            )
        if header.dtype not in _STORED_DTYPES:  # integers would pass for weights, without their scales
            raise WeightsError(
                f"{header.path}: tensor {source.name} is stored as {header.dtype}, not as one of "
                f"{', '.join(_STORED_DTYPES)}: take a checkpoint that is not quantised"
            )

    def read_into(self, host: np.ndarray, source: Source) -> None:
        """A tensor as the model has it, into ``host``: contiguous, and of its `Source.filled` shape."""
        header = self._headers[source.name]
        if source.transposed:
            count, inputs, outputs = source.shape
            for matrix, target in zip(_view(header), host.reshape(count, outputs, inputs), strict=True):
                for at in range(0, inputs, _STRIP):
                    target[:, at : at + _STRIP] = matrix[at : at + _STRIP].T
        elif source.order:
            stored, order = _view(header), np.asarray(source.order)
            end = source.heads * len(order)
            for at in range(0, end, len(order)):
                host[at : at + len(order)] = stored[at + order]
            host[end:] = stored[end:]
        elif _STORED_DTYPES[header.dtype] == host.dtype:
            _fill(host, header)
        else:
            host[:] = _view(header)

    def raw_type(self, source: Source) -> MatrixType | None:
        return None

    def raw(self, source: Source) -> RawMatrix:
        raise NotImplementedError("floating-point numbers have no type of the kernels")

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._headers

    def stored_type(self, source: Source) -> str | None:
        return None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, as it is stored."""
        return self._headers[name].shape

    def array(self, name: str) -> np.ndarray:
        """A tensor as it is stored, of any type; mapped."""
        header = self._headers[name]
        kind = _STORED_DTYPES.get(header.dtype) or _OTHER_DTYPES.get(header.dtype)
        if kind is None:
            raise WeightsError(f"{header.path}: tensor {name} is stored as {header.dtype}, which is not read")
        return _view(header, kind)


def _headers_of(path: Path) -> dict[str, _Header]:
    """The header of a safetensors file: its length in 8 bytes, and JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    return {
        name: _Header(path, tuple(entry["shape"]), entry["dtype"], 8 + length + entry["data_offsets"][0])
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def _view(header: _Header, kind: np.dtype | None = None) -> np.ndarray:
    """A tensor as it is stored, where it is stored: to be copied from. (`safetensors` would make a copy first.)"""
    try:
        return np.memmap(header.path, kind or _STORED_DTYPES[header.dtype], "r", header.offset, header.shape)
    except ValueError as error:
        raise _shorter(header.path) from error


def _fill(host: np.ndarray, header: _Header) -> None:
    """Read a tensor, which takes half as long as a copy from a mapping."""
    rest = host.reshape(-1).view(np.uint8).data
    with header.path.open("rb", buffering=0) as file:
        file.seek(header.offset)
        while rest:
            count = file.readinto(rest)
            if not count:
                raise _shorter(header.path)
            rest = rest[count:]


def _shorter(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} has become shorter since it was opened: fetch it again, and start when it is all there"
    )


def _weight_files(folder: Path) -> list[Path]:
    index, single = folder / _INDEX, folder / "model.safetensors"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsError(f"{index} is damaged ({error!r}): fetch it again") from error
        files = [folder / str(shard) for shard in shards]
    else:
        files = [single]
    for path in files:
        if path.parent != folder:
            raise WeightsError(f"{index} names {path.name!r} outside its folder")
        if not path.is_file():
            pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
            hint = (
                f"; {pickles[0].name} is a pickle, which asurge never opens: convert it to safetensors"
                if pickles
                else ""
            )
            raise WeightsError(f"{path} is missing: the checkpoint must have its weights as safetensors{hint}")
    return files


def _check_names(tensors: TensorReader, wanted: set[str], config: DecoderConfig, folder: Path) -> None:
    present = set(tensors.names())
    missing = sorted(wanted - present)
    unexpected = sorted(name for name in present - wanted if not is_ignored(name, config))
    for kind, names in (("lacks", missing), ("has unexpected", unexpected)):
        if names:
            more = f" and {len(names) - _NAMED_IN_ERRORS} more" if len(names) > _NAMED_IN_ERRORS else ""
            listed = ", ".join(names[:_NAMED_IN_ERRORS])
            raise WeightsError(
                f"{folder} {kind} tensors: {listed}{more}; weights and config.json do not belong together"
            )
