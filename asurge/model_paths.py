"""Names of models that are paths, and what lies there: as much as can be told without the imports that reading it takes."""

from __future__ import annotations

import re
from pathlib import Path

from asurge.errors import ModelLoadError

GGUF_MAGIC = b"GGUF"
GGUF_VERSIONS = (2, 3)
SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
"""The name of one part of a model in several GGUF files."""


def check_path(model: str) -> None:
    """Refuse a name that can only be a path, and at which there is nothing.

    Raises:
        ModelLoadError: there is no such folder or file.
    """
    is_path = model.startswith((".", "/", "~")) or model.lower().endswith(".gguf")
    if is_path and not Path(model).expanduser().exists():
        raise ModelLoadError(f"model={model!r}: there is no such folder or file")


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    try:
        return _begin(path).startswith(GGUF_MAGIC)
    except OSError:
        return False


def check_gguf(path: Path) -> int:
    """The version of a GGUF file.

    Raises:
        ModelLoadError: it cannot be read, is no GGUF file, or of a version or byte order that is not served.
    """
    try:
        begin = _begin(path)
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read ({error}): fetch it again") from error
    if not begin.startswith(GGUF_MAGIC):
        raise ModelLoadError(f"{path} is not a GGUF file: it begins with {begin[:4]!r}, not with {GGUF_MAGIC!r}")
    if len(begin) < 8:
        raise ModelLoadError(f"{path} is not a whole GGUF file: it ends within its version. Fetch it again")
    version = int.from_bytes(begin[4:], "little")
    if version in GGUF_VERSIONS:
        return version
    if version & 0xFFFF == 0:
        raise ModelLoadError(f"{path} is big-endian, which is not served: convert it to little-endian")
    raise ModelLoadError(
        f"{path} has GGUF version {version}, and versions {GGUF_VERSIONS[0]} and {GGUF_VERSIONS[1]} are served: "
        "convert the model with a current llama.cpp"
    )


def gguf_models(folder: Path) -> list[Path]:
    """The GGUF models of a folder: files, and the first parts of split ones; image encoders are left out."""
    found = []
    for path in sorted(folder.glob("*.gguf")):
        split = SPLIT_NAME.fullmatch(path.name)
        if (split is None or int(split["part"]) == 1) and not path.name.lower().startswith("mmproj"):
            found.append(path)
    return found


def only_gguf_model(folder: Path) -> Path:
    """The one GGUF model of a folder.

    Raises:
        ModelLoadError: there is none, or there are several.
    """
    found = gguf_models(folder)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelLoadError(f"{folder} holds no GGUF model: give the file")
    names = ", ".join(path.name for path in found[:8])
    raise ModelLoadError(f"{folder} holds {len(found)} GGUF models ({names}): give the path of one of them")


def _begin(path: Path) -> bytes:
    """The magic and the version, as far as they are there."""
    with path.open("rb") as file:
        return file.read(8)
