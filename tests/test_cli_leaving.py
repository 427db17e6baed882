"""Commands that are told to stop before they have begun: at once, with one line, whatever loads."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from asurge.cli.leaving import at_once
from asurge.cli.main import main

SLOW = """
import sys, time, threading
import asurge.engine

def assemble(config, check):
    print("loading", flush=True)
    threading.Event().wait()

asurge.engine.life_cycle.assemble = assemble
from asurge.cli import run
sys.argv = ["asurge", *sys.argv[1:]]
sys.exit(run())
"""

IMPORTING = """
import sys

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "asurge.cli.options":
            print("loading", flush=True)
            import time
            time.sleep(60)

sys.meta_path.insert(0, Slow())
from asurge.cli import run
sys.exit(run())
"""


def stopped(script: str, *arguments: str, by: signal.Signals = signal.SIGINT) -> tuple[int, str, float]:
    """Exit status, what was written to stderr after the signal, and how long it took."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        began_s = time.monotonic()
        process.send_signal(by)
        _, said = process.communicate(timeout=30)
        return process.returncode, said, time.monotonic() - began_s
    finally:
        process.kill()


@pytest.mark.parametrize("command", [("generate", "a"), ("chat",)])
def test_ctrl_c_while_a_model_loads(command: tuple[str, ...]) -> None:
    status, said, took_s = stopped(SLOW, *command)
    assert (status, said) == (130, "asurge: interrupted\n")
    assert took_s < 5


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_stopped_while_its_model_loads(by: signal.Signals) -> None:
    status, said, took_s = stopped(SLOW, "serve", "--port", "0", by=by)
    assert status == 0, said
    assert said.endswith("asurge: stopped while loading\n")
    assert took_s < 5


def test_ctrl_c_while_python_reads_the_command() -> None:
    status, said, _ = stopped(IMPORTING)
    assert (status, said) == (130, "asurge: interrupted\n")


def test_outside_of_it_ctrl_c_is_what_it_was() -> None:
    with at_once():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_in_other_threads_it_changes_nothing() -> None:
    seen = []

    def work() -> None:
        with at_once():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "serve OpenAI's and Anthropic's APIs over HTTP" in capsys.readouterr().out
