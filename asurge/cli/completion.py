"""``asurge completion SHELL``: completion of commands, options and their values in a shell."""

from __future__ import annotations

import argparse
from typing import Any

from asurge.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")

_DESCRIPTION = """\
Print a script that completes commands, options and values. Load it where your shell starts:

  bash   eval "$(asurge completion bash)"                 in ~/.bashrc
  zsh    asurge completion zsh > ~/.zfunc/_asurge          with ~/.zfunc in fpath
  fish   asurge completion fish > ~/.config/fish/completions/asurge.fish"""


def add_to(commands: Any) -> None:  # argparse keeps this type private
    """Declare the command."""
    parser = commands.add_parser(
        "completion",
        help="print a completion script for a shell",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that will read the script")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    print(script(given.parser, given.shell))
    return 0


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The completion script of a command.

    Raises:
        ConfigError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise ConfigError("completion needs shtab: pip install 'asurge[completion]'") from error
    text: str = shtab.complete(parser, shell)
    return text
