"""``asurge env``: what a bug report needs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from asurge import __version__
from asurge.processors import ProcessorProbe, ThreadBudget

_PACKAGES = "jax jaxlib flax transformers tokenizers anyio aiohttp msgspec orjson llguidance gguf numpy uvloop".split()  # noqa: SIM905
_VARIABLES = ("ASURGE_", "JAX_", "XLA_", "HF_", "OMP_", "CUDA_", "XDG_CACHE_HOME")
_SECRETS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def add_to(commands: Any) -> None:  # argparse keeps this type private
    """Declare the command."""
    parser = commands.add_parser(
        "env",
        help="print versions, processors, kernels and devices, for a bug report",
        description="Print what a bug report needs: versions, processors, kernels, devices and settings of the environment. "
        "Keys and tokens are left out.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    found = describe()
    if given.json:
        print(json.dumps(found, indent=2))
        return 0
    for section, entries in found.items():
        print(f"{section}:")
        for name, value in entries.items():
            print(f"  {name}: {value}")
    return 0


def describe() -> dict[str, dict[str, Any]]:
    """The environment, by sections."""
    import jax  # a second of imports that no other command needs at its start

    from asurge.ops import native

    processors, budget = ProcessorProbe().look(), ThreadBudget()
    reason = native.unavailable()
    library = None if reason is not None else native.loaded()
    return {
        "versions": {"asurge": __version__, "python": platform.python_version(), **_packages()},
        "system": {"platform": platform.platform(), "machine": platform.machine(), "executable": sys.executable},
        "processors": {"model": _processor_name(), "usable": processors.count, "kernel_threads": budget.threads},
        "kernels": {"library": "none" if library is None else os.path.basename(library._name), "unavailable": reason},
        "devices": {str(device): device.device_kind for device in jax.devices()},
        "environment": _environment(),
    }


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor_name() -> str:
    """The processor's name, as Linux gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _environment() -> dict[str, str]:
    """Variables that change what asurge does; of secrets, only that they are set."""
    return {
        name: "(set)" if any(word in name for word in _SECRETS) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(_VARIABLES)
    }
