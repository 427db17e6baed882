"""Ends the process at once where it could not end soon otherwise: what loads and compiles is in threads, which nothing interrupts."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

FAILED, INTERRUPTED = 2, 130


def leave(status: int, why: str) -> NoReturn:
    """End the process with one line, whatever its threads do. Nothing is lost but what they were at."""
    print(f"asurge: {why}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


@contextmanager
def at_once() -> Iterator[None]:
    """Within, Ctrl-C ends the process."""
    if threading.current_thread() is not threading.main_thread():  # which alone may say so
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: leave(INTERRUPTED, "interrupted"))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
