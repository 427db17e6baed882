"""``asurge env``: what a bug report needs."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from typing import Any

from asurge import __version__
from asurge.processors import ThreadBudget

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
    parser.add_argument("--json", action="store_true", help="print JSON")
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

    from asurge.bench.machine import cpu_name, package_versions, usable_cores
    from asurge.ops import native

    installed = package_versions(_PACKAGES)
    packages = {name: installed.get(name, "not installed") for name in _PACKAGES}
    reason = native.unavailable()
    library = None if reason is not None else native.loaded()
    return {
        "versions": {"asurge": __version__, "python": platform.python_version(), **packages},
        "system": {"platform": platform.platform(), "machine": platform.machine(), "executable": sys.executable},
        "processors": {
            "model": cpu_name() or "unknown",
            "usable": usable_cores(),
            "kernel_threads": ThreadBudget().threads,
        },
        "kernels": {"library": "none" if library is None else os.path.basename(library._name), "unavailable": reason},
        "devices": {str(device): device.device_kind for device in jax.devices()},
        "environment": _environment(),
    }


def _environment() -> dict[str, str]:
    """Variables that change what asurge does; of secrets, only that they are set."""
    return {
        name: "(set)" if any(word in name for word in _SECRETS) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(_VARIABLES)
    }
