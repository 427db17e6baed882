"""The `asurge` command."""

from __future__ import annotations

from asurge.cli.leaving import at_once


def run() -> int:
    """Run the command line of this process; returns the exit status."""
    with at_once():  # also while Python reads the rest
        from asurge.cli.main import main
    return main()
