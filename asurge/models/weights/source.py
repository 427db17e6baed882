"""Find checkpoints: the shipped demo, a local folder or file, a package, or the Hugging Face hub."""

from __future__ import annotations

import errno
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asurge.demo import CHECKPOINT
from asurge.errors import ModelLoadError
from asurge.model_paths import check_gguf, check_path, gguf_models, is_gguf, only_gguf_model

DEMO = "demo"
_PACKAGE = "package:"
_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_NOT_STORED = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR))
"""Errors of a folder, not of the network."""
_NOT_READ = ["consolidated*", *(f"*/{pattern}" for pattern in _PATTERNS if pattern != "*.jinja")]
"""Copies of the weights in other layouts, which would double the download; further chat templates are in a folder."""


def resolve_checkpoint(name: str, *, revision: str | None = None) -> Path:
    """The local folder or GGUF file of a checkpoint, fetched from the hub if need be (``HF_HUB_OFFLINE`` is honoured).

    Args:
        name: ``demo``, a folder, a GGUF file, a repository of the hub (``owner/name``), one GGUF file of a repository by its
            quantization (``owner/name:Q4_K_M``), or an installed Python package that holds a checkpoint (``package:name``).

    Raises:
        ModelLoadError: there is no such checkpoint, or it cannot be reached.
    """
    if not name:
        raise ModelLoadError(f"model={name!r}: name the demo, a checkpoint folder, a GGUF file or a repository")
    if name == DEMO:
        return CHECKPOINT
    if (path := Path(name).expanduser()).exists():
        return _local(path)
    if name.startswith(_PACKAGE):
        return _packaged(name.removeprefix(_PACKAGE))
    check_path(name)
    repository, _, quantization = name.partition(":")
    patterns = [f"*{quantization}*.gguf", f"*{quantization}*/*.gguf"] if quantization else _PATTERNS
    folder = _fetched(repository, revision, patterns, _NOT_READ if not quantization else ())
    return _quantized(folder, quantization, name) if quantization else _local(folder)


def _local(path: Path) -> Path:
    """A folder in Hugging Face's form as it is; else the GGUF model that is meant."""
    if path.is_dir():
        return only_gguf_model(path) if not (path / "config.json").exists() and gguf_models(path) else path
    if not is_gguf(path):
        raise ModelLoadError(
            f"model={str(path)!r} is a file: give the folder that holds config.json and the weights (a single file must be a model in GGUF, "
            "and it is not in GGUF)"
        )
    check_gguf(path)
    return path


def _packaged(name: str) -> Path:
    """The checkpoint that lies in an installed package, which is found and not run."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    if not folders:
        raise ModelLoadError(f"model='package:{name}': there is no such package in this environment: install it")
    found = sorted(
        {
            path.parent
            for folder in folders
            for path in folder.rglob("*")
            if path.suffix == ".gguf" or path.name == "config.json"
        }
    )
    if len(found) != 1:
        where = ", ".join(map(str, found)) or "none"
        raise ModelLoadError(
            f"model='package:{name}' must hold one checkpoint, and holds {len(found)} ({where}): give its path"
        )
    return _local(found[0])


def _quantized(folder: Path, quantization: str, name: str) -> Path:
    """The GGUF model of a repository whose file names a quantization."""
    found = [path for part in (folder, *folder.glob("*/")) for path in gguf_models(part)]
    named = [path for path in found if quantization.lower() in re.split(r"[.-]", path.name.lower())]
    chosen = named or [path for path in found if quantization.lower() in path.name.lower()]
    if len(chosen) != 1:
        listed = ", ".join(path.name for path in chosen or found) or "no GGUF file"
        raise ModelLoadError(
            f"model={name!r}: {quantization!r} must name one GGUF model of the repository, which has {listed}"
        )
    return chosen[0]


def _fetched(name: str, revision: str | None, patterns: Sequence[str], ignored: Sequence[str]) -> Path:
    """A repository's snapshot in the hub's cache."""
    from huggingface_hub import snapshot_download  # half a second of imports that local folders do not need
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        """A progress bar, on a terminal."""

        def __init__(self, *args: Any, **settings: Any) -> None:
            hidden = settings.pop("disable", None) or not sys.stderr.isatty()
            super().__init__(*args, **settings, disable=hidden)

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(ignored), tqdm_class=Bar
            )
        )
    except GatedRepoError as error:
        raise ModelLoadError(
            f"model={name!r} is gated: accept its terms on its page, then log in with `hf auth login`"
        ) from error
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _NOT_STORED:
            raise ModelLoadError(
                f"model={name!r} cannot be stored in {HF_HUB_CACHE} ({error.strerror}): free some space there, or set "
                "HF_HUB_CACHE to a folder that can be written and has room"
            ) from error
        raise ModelLoadError(
            f"model={name!r} is neither a folder nor a repository that can be fetched ({type(error).__name__}): check the "
            "name and the network, or give the path of a checkpoint folder or a GGUF file"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed ``config.json``.

    Raises:
        ModelLoadError: it is missing or not a JSON object.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelLoadError(f"{path} is missing: {folder} is not a checkpoint folder") from error
    except (ValueError, OSError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read ({error}): fetch it again") from error
    if not isinstance(raw, dict):
        raise ModelLoadError(f"{path} must hold a JSON object")
    return raw
