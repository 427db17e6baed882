"""The command line: output, errors, and a conversation."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from asurge import Engine, SamplingParams
from asurge.cli import serve
from asurge.cli.chat import Session
from asurge.cli.main import command_parser, main
from asurge.server import ServerConfig


def asurge(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asurge.cli.main", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300)


def test_generate_streams_the_prompt_and_its_continuation() -> None:
    done = asurge("generate", "What does os.path.join do?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("What does os.path.join do?\nJoin two or more pathname components")


def test_generate_json_for_several_prompts() -> None:
    done = asurge("generate", "--json", "--max-tokens", "8", "What is len?", "-", stdin="What is abs?")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["What is len?", "What is abs?"]
    assert all(1 <= row["num_generated_tokens"] <= 8 for row in rows)


@pytest.mark.parametrize("arguments", [("chat",), ("chat", "demo")])
def test_chat_reads_a_pipe(arguments: tuple[str, ...]) -> None:
    done = asurge(*arguments, stdin="Hello\n/tokens\n/nonsense\nWhat does math.sin do?\n/quit\nnever read\n")
    assert done.returncode == 0, done.stderr
    assert "Ask me what a function" in done.stdout
    assert "tokens/s" in done.stdout
    assert "unknown command /nonsense" in done.stdout
    assert "Return the sine of x" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--temperature", "-1"], "temperature=-1.0 must be in"),
        (["generate", "x", "--max-tokens", "0"], "max_tokens=0"),
        (["generate", "x", "--model", "./nowhere"], "there is no such folder or file"),
        (["chat", "./nowhere"], "there is no such folder or file"),
        (["chat", "x", "--model", "y"], "use one of the two"),
        (["serve", "/nonexistent"], "there is no such folder or file"),
        (["serve", "a=demo", "b=./nowhere"], "there is no such folder or file"),
        (["chat", "--model", "tests"], "holds no config.json"),
        (["chat", "--top-p", "2"], "top_p=2.0"),
        (["generate", "x", "--set", "strict_context=maybe"], "strict_context='maybe' must be True or False"),
        (["generate", "x", "--set", "page_size=0", "--set", "strict_context=False"], "page_size=0"),
        (["generate", "x", "--set", "strict_context=False", "--set", "page_size=0"], "page_size=0"),
    ],
)
def test_errors_are_one_line(arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "--model" in arguments:  # starts an event loop of its own, so not inside this one
        done = asurge(*arguments)
        status, shown = done.returncode, done.stderr
    else:
        status, shown = main(arguments), capsys.readouterr().err
    assert status == 2
    assert shown.startswith("asurge: error: ")
    assert message in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["serve", "/nonexistent"], ["generate", "x", "--model", "./nowhere"], ["--help"]]
)
def test_nothing_heavy_is_imported_before_arguments_are_checked(arguments: Sequence[str]) -> None:
    script = "import sys; from asurge.cli import run; sys.argv[1:] = sys.argv[1:]\ntry: run()\nexcept SystemExit: pass\nprint('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=100)
    assert done.stdout.endswith("False\n"), done.stderr


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["serve", "--quantization", "int8"], "--set quantization=int8"),
        (["serve", "--tensor-parallel-size", "2"], "an engine uses one device"),
        (["serve", "--gpu-memory-utilization=0.9"], "--set hbm_utilization="),
        (["chat", "--max-model-length", "9"], "use --max-model-len"),
        (["generate", "x", "--temprature", "0"], "use --temperature"),
        (["generate", "x", "--ctx-size", "9"], "use --max-model-len"),
        (["serve", "--nothing-like-it"], "there is no option --nothing-like-it ("),
    ],
)
def test_options_of_other_engines_and_typing_errors(
    arguments: Sequence[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert meant in capsys.readouterr().err.splitlines()[-1]


def test_env_says_what_a_report_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASURGE_API_KEYS", "secret")
    monkeypatch.setenv("ASURGE_THREADS", "1")
    assert main(["env", "--json"]) == 0
    shown = capsys.readouterr().out
    found = json.loads(shown)
    assert found["versions"]["asurge"]
    assert found["processors"]["kernel_threads"] == 1
    assert found["environment"]["ASURGE_API_KEYS"] == "(set)"
    assert "secret" not in shown
    assert main(["env"]) == 0
    assert "kernel_threads: 1" in capsys.readouterr().out


def test_the_package_is_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "asurge", "--version"], capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("asurge ")


async def test_a_session_keeps_its_history(tiny: Engine, tmp_path: Path) -> None:
    screen = io.StringIO()
    session = Session(tiny, SamplingParams(max_tokens=8, temperature=0.0), Console(file=screen))
    await session.answer("one")
    await session.answer("two")
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 2
    assert session.last is not None
    assert session.messages[-1]["content"] == session.last.get_text()

    assert session.command("/set temperature 0.5")
    assert session.params.temperature == 0.5
    assert session.params.max_tokens == 8
    for wrong in ("/set temperature hot", "/set temperature -3", "/set colour red", "/set"):
        assert session.command(wrong)
    assert session.params.temperature == 0.5

    target = tmp_path / "talk.json"
    session.command(f"/save {target}")
    assert json.loads(target.read_text()) == session.messages
    session.command("/save /nowhere/at/all")
    assert "cannot write" in screen.getvalue()

    session.command("/system Be brief.")
    assert session.messages == []
    await session.answer("three")
    assert session.last.prompt is not None
    assert session.last.prompt.startswith("<s>system: Be brief.")
    session.command("/clear")
    assert not session.command("/quit")


async def test_a_refused_message_is_not_kept(tiny: Engine) -> None:
    screen = io.StringIO()
    session = Session(tiny, SamplingParams(max_tokens=8), Console(file=screen))
    session._system = "\ud800"  # not encodable: the tokenizer refuses it
    await session.answer("hello")
    assert session.messages == []
    assert "Error" in screen.getvalue()


def test_a_server_may_outlive_its_engines() -> None:
    parser = command_parser()
    for arguments, expected in (([], False), (["--keep-alive-on-engine-death"], True)):
        settings = serve._settings(parser.parse_args(["serve", *arguments]))
        assert ServerConfig(**settings).keep_alive_on_engine_death is expected
