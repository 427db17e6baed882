"""Completion scripts, made from the parser that the command has."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from asurge.cli.completion import SHELLS, script
from asurge.cli.main import command_parser, main

_ANSWER = """
{script}
COMP_WORDS=({words})
COMP_CWORD={last}
_shtab_asurge
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completions(*words: str) -> set[str]:
    """What bash offers for the last word."""
    text = _ANSWER.format(script=script(command_parser(), "bash"), words=" ".join(words), last=len(words) - 1)
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def options(parser: argparse.ArgumentParser) -> set[str]:
    found = {name for action in parser._actions for name in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found |= options(inner)
    return found


def test_bash_completes_commands_options_and_values() -> None:
    assert {"generate", "chat", "serve", "bench", "env", "completion"} <= completions("asurge", "''")
    assert completions("asurge", "ser") == {"serve"}
    assert completions("asurge", "serve", "--served") == {"--served-model-name"}
    assert completions("asurge", "chat", "--dtype", "bf") == {"bfloat16"}
    assert completions("asurge", "completion", "''") >= set(SHELLS)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_option_is_in_the_script(shell: str) -> None:
    text = script(command_parser(), shell)
    for name in options(command_parser()):
        assert (name.lstrip("-") if shell == "fish" else name) in text


def test_without_shtab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'asurge[completion]'" in capsys.readouterr().err
