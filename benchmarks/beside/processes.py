"""Processes that end with the block that starts them, and with this process, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LAUNCHER = Path(__file__).with_name("launcher.py")
_GRACE_S = 10.0


def launched(
    command: Sequence[str], *, nice: int = 0, cpus: Sequence[int] = (), cgroup: Path | None = None
) -> list[str]:
    """The command, placed by the launcher."""
    orders = {"parent": os.getpid(), "nice": nice, "cpus": list(cpus), "cgroup": str(cgroup) if cgroup else None}
    return [sys.executable, "-IS", str(LAUNCHER), json.dumps(orders), *command]


@contextmanager
def running(command: Sequence[str], *, apart: bool = False, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that leads a group of its own, which is ended with the block; ``options`` go to Popen.

    It stays in this process's session unless it is to be ``apart``: where Linux schedules sessions as groups (autogroup), each
    session has an equal share whatever the niceness of its processes, and who is put aside waits less long.
    """
    group: dict[str, Any] = {"start_new_session": True} if apart else {"process_group": 0}
    process = subprocess.Popen(command, text=True, **group, **options)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[Any], grace_s: float = _GRACE_S) -> None:
    """End a process that leads a group of its own, and the group, also what the leader left behind."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):  # what could not be written before has nobody to read it
                stream.close()
    try:
        _signal_group(process.pid, signal.SIGTERM)
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(leader: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


def members(leader: int) -> list[int]:
    """Processes of a group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == leader:
                found.append(int(folder.name))
        except OSError:
            continue
    return found
