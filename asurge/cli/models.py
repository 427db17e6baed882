"""``asurge models``: which models are here, and what is in one."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asurge.cli.leaving import FAILED
from asurge.errors import AsurgeError, ModelLoadError
from asurge.model_paths import gguf_models

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass(frozen=True, slots=True)
class ModelReport:
    """Report on a checkpoint that is not loaded.

    Attributes:
        model: as commands take it.
        about: what a GGUF file says about itself: name, size, license, author and the like.
        weights: the types of tensors, and how many there are of each.
        served: by what; or None, and ``reason`` says why not.
        weight_bytes: of memory that weights take, as the settings' defaults have them.
        kv_bytes_per_token: of keys and values.
        step_bytes: read for each token of a single stream, without keys and values.
        floor_ms: how long reading them takes, at least; None: not measured.
    """

    model: str
    path: str
    file_bytes: int
    about: dict[str, str]
    architecture: str = ""
    parameters: int = 0
    layers: int = 0
    context: int = 0
    weights: dict[str, int] = dataclasses.field(default_factory=dict)
    served: str | None = None
    reason: str | None = None
    weight_bytes: int = 0
    kv_bytes_per_token: int = 0
    step_bytes: int = 0
    floor_ms: float | None = None


def add_to(commands: Any) -> None:  # argparse keeps this type private
    """Declare the command."""
    parser = commands.add_parser(
        "models",
        help="list the models that are here, or check one",
        description="List the models that can be loaded: the demo, those in the hub's cache, and GGUF files and checkpoint folders "
        "in this folder. With `check MODEL`, say what is in one, whether it is served, by which kernels, in how much memory.",
    )
    parser.add_argument(
        "check", nargs="*", metavar="check MODEL", help="a file, a folder, a repository or package:NAME"
    )
    parser.add_argument(
        "--bandwidth", action="store_true", help="measure the memory, and say how fast a stream can be at most"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if given.check and (given.check[0] != "check" or len(given.check) != 2):
        print("asurge: error: asurge models takes nothing, or `check MODEL`", file=sys.stderr)
        return FAILED
    bandwidth = None
    if given.bandwidth:
        from asurge.bench.bandwidth import measure_bandwidth  # measuring is for those who ask

        bandwidth = measure_bandwidth()
    if given.check:
        report = inspect_model(given.check[1], bandwidth)
        _show_one(report, as_json=given.json)
        return 0 if report.served else FAILED
    reports = [_inspected(model, bandwidth) for model in found_models()]
    if given.json:
        print(json.dumps([dataclasses.asdict(report) for report in reports], indent=2))
    else:
        from rich.console import Console

        Console().print(_table(reports))
    return 0


def found_models() -> Iterator[str]:
    """Models by the names that commands take."""
    yield "demo"
    here = Path()
    yield from (f"./{path}" for path in gguf_models(here))
    yield from (f"./{path.parent}" for path in sorted(here.glob("*/config.json")))
    yield from _cached()


def _cached() -> Iterator[str]:
    """Repositories in the hub's cache that hold a model."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda one: one.repo_id):
        names = {file.file_name for revision in repository.revisions for file in revision.files}
        if repository.repo_type == "model" and (
            "config.json" in names or any(name.endswith(".gguf") for name in names)
        ):
            yield repository.repo_id


def _inspected(model: str, bandwidth: float | None) -> ModelReport:
    try:
        return inspect_model(model, bandwidth)
    except AsurgeError as error:
        return ModelReport(model, "", 0, {}, reason=str(error))


def inspect_model(model: str, bandwidth: float | None = None) -> ModelReport:
    """Look into a checkpoint, without reading its weights.

    Args:
        bandwidth: of this machine's memory, in bytes a second.

    Raises:
        ModelLoadError: there is no such checkpoint, or what is there is none.
    """
    from asurge.gguf.checkpoint import open_gguf  # reading checkpoints takes imports that listing commands do not need
    from asurge.models.weights.source import read_config, resolve_checkpoint

    path = resolve_checkpoint(model)
    about: dict[str, str] = {}
    weights: dict[str, int] = {}
    if path.is_dir():
        files, architecture = (
            sorted(path.glob("*.safetensors")),
            ", ".join(read_config(path).get("architectures") or ["unknown"]),
        )
    else:
        checkpoint = open_gguf(path)
        about, weights, architecture = checkpoint.describe(), checkpoint.types(), checkpoint.architecture
        files = sorted({tensor.path for tensor in checkpoint.tensors.values()})
    size = sum(file.stat().st_size for file in files)
    report = ModelReport(model, str(path), size, about, architecture, weights=weights)
    try:
        return _measured(report, path, bandwidth)
    except ModelLoadError as error:
        return dataclasses.replace(report, reason=str(error))


def _measured(report: ModelReport, path: Path, bandwidth: float | None) -> ModelReport:
    import math

    from asurge.bench.roofline import read_footprint
    from asurge.config import EngineConfig
    from asurge.models import open_model
    from asurge.models.formats import BFLOAT16
    from asurge.models.weights.checkpoint import checkpoint_table
    from asurge.models.weights.conversion import stored_types, unable

    opened = open_model(path, dtype="bfloat16", progress=False)
    config, footprint = opened.config, read_footprint(path, EngineConfig())
    reason = unable(opened, BFLOAT16, as_stored=True)
    widened = stored_types(opened, but_grouped=reason is None)
    served = "plain JAX" if reason is not None else f"the CPU kernels ({_kernels()})"
    if widened:
        served += f", with weights in {', '.join(sorted(widened))} widened to bfloat16"
    sizes = [math.prod(source.shape) for sources in checkpoint_table(config).values() for source in sources]
    return dataclasses.replace(
        report,
        parameters=sum(sizes),
        layers=config.num_layers,
        context=config.max_position_embeddings,
        served=served,
        reason=reason,
        weight_bytes=footprint.held_bytes,
        kv_bytes_per_token=footprint.kv_bytes_per_token,
        step_bytes=footprint.weight_bytes,
        floor_ms=None if bandwidth is None else footprint.weight_bytes / bandwidth * 1000,
    )


def _kernels() -> str:
    from asurge.ops import native

    library = native.loaded()
    return Path(str(library._name)).stem.rpartition("_")[2] if library is not None else "none"


def _show_one(report: ModelReport, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
        return
    lines = {"model": report.model, "path": report.path, "file": _size(report.file_bytes), **report.about}
    if report.parameters:
        lines |= {
            "architecture": f"{report.architecture}, {report.layers} layers, {report.parameters / 1e6:,.0f} M parameters",
            "context": f"{report.context:,} tokens",
            "memory": f"{_size(report.weight_bytes)} of weights, {_size(report.kv_bytes_per_token)} for each token",
        }
    if report.weights:
        lines["tensors"] = ", ".join(f"{count} {kind}" for kind, count in report.weights.items())
    if report.floor_ms is not None:
        lines["a stream"] = (
            f"at most {1000 / report.floor_ms:,.0f} tokens a second ({report.floor_ms:.2f} ms to read the weights)"
        )
    lines["served by"] = report.served or f"nothing: {report.reason}"
    if report.served and report.reason:
        lines["no kernels"] = report.reason
    for name, value in lines.items():
        print(f"{name + ':':14}{value}")


def _table(reports: list[ModelReport]) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("model", min_width=max(len(report.model) for report in reports))  # to be copied: not cut
    for name in ("architecture", "parameters", "context", "weights", "memory", "served by"):
        table.add_column(name, overflow="fold")
    for one in reports:
        kinds = ", ".join(kind for kind in one.weights if kind != "F32")
        served = one.served or f"[red]nothing[/]: {one.reason}"
        if not one.parameters:
            table.add_row(one.model, "", "", "", kinds, "", served)
            continue
        parameters, memory = f"{one.parameters / 1e6:,.0f} M", _size(one.weight_bytes)
        table.add_row(
            one.model, one.architecture, parameters, f"{one.context:,}", kinds or "as they are", memory, served
        )
    return table


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
