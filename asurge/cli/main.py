"""``asurge``: subcommands and their errors."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence

from asurge import __version__
from asurge.cli import bench, chat, completion, environment, generate, models, serve
from asurge.cli.leaving import FAILED, INTERRUPTED
from asurge.cli.near_misses import refuse
from asurge.errors import AsurgeError

_PIPE_CLOSED = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors are one line on stderr, without a traceback."""
    parser = command_parser()
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        refuse(parser, unknown, given.command)
    if given.run is None:
        parser.print_help()
        return 0
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it misses PyTorch, which is not needed
    logging.basicConfig(level=logging.WARNING, format="asurge: %(levelname)s: %(message)s")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal cannot show is no reason to fail
    try:
        status: int = given.run(given)
        sys.stdout.flush()
    except AsurgeError as error:
        print(f"asurge: error: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        print("asurge: interrupted", file=sys.stderr)
        return INTERRUPTED
    return status


def command_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="asurge",
        description="LLM inference in your event loop. Without a model, commands use the demo model that ships with asurge.",
        epilog="asurge COMMAND --help lists the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"asurge {__version__}")
    parser.set_defaults(run=None, command=None, parser=parser)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    for command in (generate, chat, serve, models, bench, environment, completion):
        command.add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
