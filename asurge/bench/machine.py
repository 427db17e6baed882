"""The machine and this process: what figures were measured on, and what they cost."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from asurge.processors import ProcessorProbe
from asurge.runner.compilation import COMPILED


def describe_machine(*, with_device: bool = True) -> dict[str, Any]:
    """Processor, memory and versions; JSON-ready. Asking for the device starts JAX."""
    packages = package_versions(("asurge", "jax", "flax", "numpy", "transformers", "anyio"))
    if with_device:
        device = jax.devices()[0]
        packages |= {"device": device.device_kind, "platform": device.platform}
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "cores_limit": ProcessorProbe().look().limit,
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **packages,
    }


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of the packages that are installed, by name."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # also of asurge itself, run from a checkout
            continue
    return found


def load_average() -> float:
    """Over the last minute: the load from elsewhere, if taken before the measurement."""
    return round(os.getloadavg()[0], 2)


def usable_cores() -> int:
    """Cores whose time this process has."""
    return ProcessorProbe().look().count


def peak_resident_bytes() -> int:
    """The most memory this process has held since its start."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def count_compilations() -> Iterator[list[float]]:
    """Collect the seconds of each compilation by XLA inside the block, in the list that it yields."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == COMPILED:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def cpu_name() -> str:
    """The processor's name, as the system gives it; empty if it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
