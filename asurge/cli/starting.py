"""The engine of a command: while it starts, Ctrl-C ends the process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from asurge.cli.leaving import at_once

if TYPE_CHECKING:
    from asurge.engine import Engine


@asynccontextmanager
async def started(settings: dict[str, Any]) -> AsyncIterator[Engine]:
    """An engine with these settings, as long as it is needed.

    Raises:
        AsurgeError: it cannot start.
    """
    with at_once():
        from asurge.engine import Engine  # JAX: not needed to print a usage

        engine = Engine(**settings)
        await engine.initiate()
    try:
        yield engine
    finally:
        await engine.terminate()
