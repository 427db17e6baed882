"""Neighbours: other work on the machine while an engine is measured."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from asurge.bench.machine import usable_cores
from benchmarks.beside.processes import launched, running

SPIN = "while True: pass"
MULTIPLY = """
import numpy as np
left, right = (np.random.default_rng(seed).standard_normal((1024, 1024), np.float32) for seed in (0, 1))
while True:
    np.matmul(left, right)
"""
NICE = 10


AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")


@dataclasses.dataclass(frozen=True, slots=True)
class Neighbour:
    """A neighbour that an engine is measured beside, or a quota that it runs under.

    Attributes:
        programs: Python programs that run meanwhile, each in a process.
        apart: they are another session, which the kernel may schedule as a group of its own.
        placement: where the engine's own process runs: ``free``, ``quota-1`` or ``one-core``.
        app: an application computes on the engine's own event loop.
    """

    name: str
    programs: tuple[str, ...] = ()
    nice: int = 0
    apart: bool = False
    placement: str = "free"
    app: bool = False

    @contextmanager
    def there(self) -> Iterator[list[int]]:
        """Its processes, by number, until the block ends."""
        with ExitStack() as stack:
            commands = [launched([sys.executable, "-Ic", program], nice=self.nice) for program in self.programs]
            yield [stack.enter_context(running(command, apart=self.apart)).pid for command in commands]


def known_neighbours() -> dict[str, Neighbour]:
    """Neighbours by name."""
    spinners = (SPIN,) * usable_cores()
    found = (
        Neighbour("none"),
        Neighbour("one-busy", (SPIN,)),
        Neighbour("one-apart", (SPIN,), apart=True),
        Neighbour("two-busy", spinners),  # as many as there are processors
        Neighbour("niced", spinners, nice=NICE),
        Neighbour("numpy-job", (MULTIPLY,)),
        Neighbour("quota-1", placement="quota-1"),
        Neighbour("one-core", placement="one-core"),
        Neighbour("app", app=True),
    )
    return {neighbour.name: neighbour for neighbour in found}


def sessions_are_groups() -> bool:
    """Whether the kernel gives each session an equal share of a processor (autogroup), rather than each thread."""
    return AUTOGROUP.exists() and AUTOGROUP.read_text().strip() == "1"
