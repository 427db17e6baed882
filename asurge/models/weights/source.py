"""Where checkpoints come from: the shipped demo, a local folder, or the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from asurge.demo import CHECKPOINT
from asurge.errors import ModelLoadError

DEMO = "demo"
_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_NOT_READ = ["consolidated*", *(f"*/{pattern}" for pattern in _PATTERNS if pattern != "*.jinja")]
"""Copies of the weights in other layouts, which would double the download; further chat templates are in a folder."""


def resolve_checkpoint(name: str, *, revision: str | None = None) -> Path:
    """The local folder of a checkpoint, fetched from the hub if need be (``HF_HUB_OFFLINE`` is honoured).

    Raises:
        ModelLoadError: there is no such folder or repository, or it cannot be reached.
    """
    if not name:
        raise ModelLoadError(f"model={name!r}: name the demo, a checkpoint folder or a repository")
    if name == DEMO:
        return CHECKPOINT
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    if folder.is_file():
        raise ModelLoadError(f"model={name!r} is a file: give the folder that holds config.json and the weights")
    if name.startswith((".", "/", "~")):
        raise ModelLoadError(f"model={name!r}: there is no such folder")
    from huggingface_hub import snapshot_download  # half a second of imports that local folders do not need
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_PATTERNS, ignore_patterns=_NOT_READ))
    except GatedRepoError as error:
        raise ModelLoadError(
            f"model={name!r} is gated: accept its terms on its page, then log in with `hf auth login`"
        ) from error
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelLoadError(
            f"model={name!r} is neither a folder nor a repository that can be fetched ({type(error).__name__}): check the "
            "name and the network, or give the path of a checkpoint folder"
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
