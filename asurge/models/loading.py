"""Safetensors files into device arrays, one parameter at a time, through memory maps. Nothing is ever unpickled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from asurge.errors import WeightsError
from asurge.models.checkpoint import Source, checkpoint_table, is_ignored
from asurge.models.config import DecoderConfig
from asurge.models.decoder import Decoder
from asurge.models.registry import family_for
from asurge.models.source import read_config

_INDEX = "model.safetensors.index.json"
_NAMED_IN_ERRORS = 8
_STRIP = 32
"""Rows transposed at a time: 3.5 times faster than a whole matrix at once (5120 x 4096 in bf16: 44 ms, 153)."""

_STORED_DTYPES = ("BF16", "F16", "F32", "F64")


def load_model(folder: Path, *, dtype: str, progress: bool = True) -> Decoder:
    """The model of a checkpoint folder, with weights on the device in ``dtype``.

    Peak memory stays near the weights themselves: files are mapped, and each parameter is assembled and
    handed over before the next.

    Raises:
        UnknownArchitectureError: no family for it.
        WeightsError: files are missing or damaged, or tensors are missing, unexpected or of the wrong shape.
    """
    raw = read_config(folder)
    config = family_for(raw).config(raw)
    tensors = _Tensors(folder)
    table = checkpoint_table(config)
    _check_names(tensors, {source.name for sources in table.values() for source in sources}, config, folder)
    for sources in table.values():
        for source in sources:
            tensors.check(source)
    # `eval_shape` builds the module without allocating: every leaf is then replaced by a loaded one.
    model = nnx.eval_shape(lambda: Decoder(config, dtype=jnp.dtype(dtype), rngs=None))
    graph, state = nnx.split(model)
    leaves = dict(nnx.to_flat_state(state))
    assert leaves.keys() == table.keys(), f"table and module differ: {leaves.keys() ^ table.keys()}"
    size = sum(int(np.prod(leaf.shape)) for leaf in leaves.values()) * jnp.dtype(dtype).itemsize
    loaded = []
    with tqdm(total=size, desc="Loading weights", unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
        # The largest first: while a tensor is held twice, as file and as array, little else is loaded yet.
        for path, leaf in sorted(leaves.items(), key=lambda item: -item[1].size):
            array = _load(tensors, table[path], jnp.dtype(dtype))
            loaded.append((path, leaf.replace(array)))
            bar.update(array.nbytes)
    return nnx.merge(graph, nnx.from_flat_state(loaded))


@dataclasses.dataclass(frozen=True, slots=True)
class _TensorHeader:
    """What a file's header says about one tensor."""

    path: Path
    shape: tuple[int, ...]
    dtype: str


class _Tensors:
    """All tensors of a folder, by name.

    A file is mapped for one tensor at a time: a mapping kept open would hold all pages read so far, and loading would
    peak at twice the weights (measured: 2.2 times).
    """

    def __init__(self, folder: Path) -> None:
        self._headers: dict[str, _TensorHeader] = {}
        for path in _weight_files(folder):
            try:
                with safe_open(path, framework="numpy") as file:
                    for name in file.keys():  # noqa: SIM118 - not a mapping
                        header = file.get_slice(name)
                        self._headers[name] = _TensorHeader(path, tuple(header.get_shape()), header.get_dtype())
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

    def read(self, source: Source) -> np.ndarray:
        """A tensor as it is stored."""
        with safe_open(self._headers[source.name].path, framework="numpy") as file:
            return file.get_tensor(source.name)

    def read_into(self, host: np.ndarray, source: Source) -> None:
        """A tensor as the model has it, into ``host``, whose shape is its `Source.filled`."""
        if source.transposed:
            self._transpose_into(host, source)
        elif source.paired_heads:
            heads, rest = source.paired_heads, source.shape[1:]
            pairs = self.read(source).reshape(heads, -1, 2, *rest)
            host.reshape(heads, 2, -1, *rest)[:] = pairs.swapaxes(1, 2)
        else:
            host[:] = self.read(source)

    def _transpose_into(self, host: np.ndarray, source: Source) -> None:
        """One matrix after another, so that no other copy of the whole is needed."""
        count, inputs, outputs = source.shape
        with safe_open(self._headers[source.name].path, framework="numpy") as file:
            stored = file.get_slice(source.name)
            for index, target in enumerate(host.reshape(count, outputs, inputs)):
                matrix = stored[index]
                for at in range(0, inputs, _STRIP):
                    target[:, at : at + _STRIP] = matrix[at : at + _STRIP].T


def _load(tensors: _Tensors, sources: tuple[Source, ...], dtype: jnp.dtype) -> jax.Array:
    first = sources[0]
    if len(sources) == 1 and not (first.transposed or first.paired_heads):
        host = tensors.read(first).astype(dtype, copy=False)
    else:
        rows = sum(source.filled[0] for source in sources)
        host = np.empty((rows, *first.filled[1:]), dtype)
        at = 0
        for source in sources:
            end = at + source.filled[0]
            tensors.read_into(host[at:end], source)
            at = end
    # Waiting here keeps host copies from piling up behind an asynchronous transfer.
    return jax.device_put(host).block_until_ready()


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


def _check_names(tensors: _Tensors, wanted: set[str], config: DecoderConfig, folder: Path) -> None:
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
