"""Becomes a command, placed: ``python launcher.py JSON COMMAND...``, with ``parent``, ``nice``, ``cpus`` and ``cgroup`` in the JSON.

The kernel ends the process with its parent, however that ends. Standard library only: any interpreter may run this.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


def place(orders: dict[str, Any]) -> None:
    """Apply the orders to this process."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != orders["parent"]:  # it ended before the kernel was told
        raise SystemExit(1)
    if orders.get("cgroup"):
        (Path(orders["cgroup"]) / "cgroup.procs").write_text(str(os.getpid()))
    if orders.get("cpus"):
        os.sched_setaffinity(0, orders["cpus"])
    os.nice(orders.get("nice", 0))


if __name__ == "__main__":
    place(json.loads(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
