"""A model in GGUF: one file, or the parts of a split one, seen as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asurge.errors import ModelLoadError, WeightsError
from asurge.gguf.file import GgufFile, GgufTensor, read_file
from asurge.model_paths import SPLIT_NAME, only_gguf_model

_MAX_PARTS = 1024
_NOT_A_MODEL = {
    "adapter": "a LoRA adapter",
    "mmproj": "an image encoder (mmproj)",
    "projector": "an image encoder (projector)",
    "vocab": "a vocabulary without weights",
    "imatrix": "an importance matrix",
}
_SHOWN = {
    "name": "general.name",
    "size": "general.size_label",
    "license": "general.license",
    "author": "general.author",
    "organization": "general.organization",
    "finetune": "general.finetune",
    "url": "general.url",
    "quantized_by": "general.quantized_by",
}
"""What a person asks for, by the key that holds it."""


@dataclasses.dataclass(frozen=True, slots=True)
class GgufCheckpoint:
    """The metadata and the tensors of a model, whatever number of files they lie in.

    Attributes:
        path: the file, or the first part of a split one.
        tensors: by llama.cpp's names.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """Architecture by llama.cpp's name of the family, such as ``qwen3``."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str) or not name:
            raise ModelLoadError(f"{self.path}: general.architecture={name!r} must name a family: fetch the file again")
        return name

    def get(self, key: str) -> Any:
        """A value of the architecture's own metadata, such as ``context_length``, or None."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def describe(self) -> dict[str, str]:
        """Describe the file by its metadata for people: name, size, license, author and the like."""
        given = {name: self.metadata.get(key) for name, key in _SHOWN.items()}
        return {name: value for name, value in given.items() if isinstance(value, str) and value}

    def types(self) -> dict[str, int]:
        """Number of tensors of each type, the commonest first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.type.name] = counts.get(tensor.type.name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def open_gguf(path: Path) -> GgufCheckpoint:
    """The model in a file, in the split that a part belongs to, or in a folder that holds one of either.

    Raises:
        ModelLoadError: there is no such model, there are several, a part is missing, or it is no language model.
        WeightsError: a header is damaged, or a tensor does not lie within its file.
    """
    first = only_gguf_model(path) if path.is_dir() else path
    parts = _parts(first)
    files = [read_file(part) for part in parts]
    _check_kind(files[0])
    tensors: dict[str, GgufTensor] = {}
    for file in files:
        if twice := tensors.keys() & file.tensors.keys():
            raise WeightsError(f"{file.path} repeats tensor {min(twice)!r} of another part: fetch all parts again")
        tensors.update(file.tensors)
    expected = files[0].metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise WeightsError(
            f"{parts[0]}: its {len(parts)} parts hold {len(tensors)} tensors, and {expected} belong to the model: fetch them again"
        )
    return GgufCheckpoint(parts[0], files[0].metadata, tensors)


def _parts(path: Path) -> list[Path]:
    """All files of a model, from any of them."""
    split = SPLIT_NAME.fullmatch(path.name)
    if split is None:
        return [path]
    count = int(split["count"])
    if not 1 <= int(split["part"]) <= count <= _MAX_PARTS:
        raise ModelLoadError(
            f"{path} is named as part {split['part']} of {split['count']}: at most {_MAX_PARTS} are read"
        )
    parts = [path.with_name(f"{split['stem']}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ModelLoadError(
            f"{path} is one of {count} parts, and {', '.join(missing[:8])} is missing: fetch all parts"
        )
    return parts


def _check_kind(file: GgufFile) -> None:
    kind, name = file.metadata.get("general.type", "model"), file.metadata.get("general.architecture")
    if name == "clip":
        kind = "mmproj"
    if kind != "model":
        what = _NOT_A_MODEL.get(str(kind), f"of type {kind!r}")
        raise ModelLoadError(f"{file.path} is {what}, not a language model: give the model's own file")
    count, path = file.metadata.get("split.count", 0), file.path
    if count and count > 1 and SPLIT_NAME.fullmatch(path.name) is None:
        raise ModelLoadError(
            f"{path} is one of {count} parts, whose names must end in -00001-of-{count:05d}.gguf and so on: rename them"
        )
