"""The kernel scheduler's view of some processes, and of the machine: time on processors, time in run queues, switches."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
_IDLE = (3, 4)  # the fields of /proc/stat for idle time and for waiting for disks


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """Times and switches of one thread, or of several.

    Attributes:
        cpu_s: on a processor.
        wait_s: ready to run, while somebody else had the processor.
        slices: times it was put on a processor.
        voluntary / involuntary: switches because it slept, and because it was put aside.
    """

    cpu_s: float = 0.0
    wait_s: float = 0.0
    slices: int = 0
    voluntary: int = 0
    involuntary: int = 0

    def __add__(self, other: Share) -> Share:
        return self._combined(other, 1)

    def __sub__(self, other: Share) -> Share:
        return self._combined(other, -1)

    def _combined(self, other: Share, sign: int) -> Share:
        fields = (field.name for field in dataclasses.fields(self))
        return Share(**{name: getattr(self, name) + sign * getattr(other, name) for name in fields})


Threads = dict[int, Share]
"""Times by thread."""


def parse_share(schedstat: str, status: str) -> Share:
    """Parse the texts of a thread's ``schedstat`` and ``status``."""
    cpu_ns, wait_ns, slices = map(int, schedstat.split())
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    switches = (int(fields[f"{kind}voluntary_ctxt_switches"]) for kind in ("", "non"))
    return Share(cpu_ns / 1e9, wait_ns / 1e9, slices, *switches)


def threads_of(processes: Iterable[int], proc: Path = PROC) -> Threads:
    """All threads of these processes; those that end meanwhile are left out."""
    found = {}
    for process in processes:
        for task in (proc / str(process) / "task").glob("[0-9]*"):
            try:
                found[int(task.name)] = parse_share((task / "schedstat").read_text(), (task / "status").read_text())
            except (OSError, ValueError, KeyError):
                continue
    return found


def between(before: Threads, after: Threads) -> Share:
    """The sum over threads; of one that ended before the second look, nothing is known."""
    return sum((share - before.get(thread, Share()) for thread, share in after.items()), Share())


def busy_s(stat: str, ticks_per_s: int) -> float:
    """Seconds that all processors together have computed, or were held by the machine below, from the text of ``/proc/stat``."""
    fields = [int(ticks) for ticks in stat.splitlines()[0].split()[1:9]]
    return sum(ticks for at, ticks in enumerate(fields) if at not in _IDLE) / ticks_per_s


def machine_busy_s(proc: Path = PROC) -> float:
    """`busy_s` until now."""
    return busy_s((proc / "stat").read_text(), os.sysconf("SC_CLK_TCK"))
