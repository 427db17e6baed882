"""The documents: their code runs, what they name exists, and their lines are short."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from asurge import Engine
from asurge.cli.main import command_parser
from asurge.cli.options import parse_settings
from asurge.config import EngineConfig
from asurge.parsing import registry
from asurge.server import ApiServer, make_app

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LONGEST_LINE = 120
PARSED_ONLY = re.compile(r"<!-- parsed only: .{10,} -->")
RUN = ("generate", "chat", "env", "completion")
"""Commands that end by themselves, within seconds, without a model from elsewhere."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        mark: the line of the source before it, where that is a comment.
    """

    page: Path
    line: int
    language: str
    text: str
    mark: str

    @property
    def runs(self) -> bool:
        return not PARSED_ONLY.fullmatch(self.mark)

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    lines = page.read_text().splitlines()
    begin = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if begin is None:
            begin = number
            continue
        mark = lines[begin - 1] if begin and lines[begin - 1].startswith("<!--") else ""
        yield Block(page, begin + 1, lines[begin][3:].strip(), "\n".join(lines[begin + 1 : number]) + "\n", mark)
        begin = None
    assert begin is None, f"{page.name}:{begin}: a block without an end"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]
WITH_PYTHON = [page for page in PAGES if any(b.language == "python" and b.runs for b in blocks_of(page))]


def wraps(line: str) -> bool:
    """Whether a line could be shorter: tables and links cannot be broken."""
    return not line.lstrip().startswith("|") and "](" not in line and "://" not in line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_wrapped(page: Path) -> None:
    long = [n for n, line in enumerate(page.read_text().splitlines(), 1) if len(line) > LONGEST_LINE and wraps(line)]
    assert long == [], f"{page.name}: lines of more than {LONGEST_LINE} characters: {long}"


def test_blocks_name_their_language() -> None:
    assert {block.language for block in BLOCKS} <= {"python", "sh", "yaml", "ini", "nginx", "text"}
    assert len(SHELL) > 15
    assert sum(block.language == "python" for block in BLOCKS) >= 8


def test_a_block_that_is_not_run_says_why() -> None:
    for block in BLOCKS:
        if "parsed only" in block.mark:
            assert not block.runs, f"{block}: give the reason: <!-- parsed only: REASON -->"


def compiled(block: Block) -> Any:
    return compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python_is_valid(block: Block) -> None:
    compiled(block)


@pytest.fixture
def formats() -> Iterator[None]:
    """Formats that a page registers are gone afterwards."""
    kept = dict(registry._tools), dict(registry._reasoning)
    yield
    for table, entries in zip((registry._tools, registry._reasoning), kept, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.usefixtures("formats")
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
async def test_python_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after another, in one namespace. What would serve for ever is called with arguments that it
    takes, and returns."""
    served: list[str] = []

    def fire(self: ApiServer, *arguments: Any, **named: Any) -> None:
        inspect.signature(ApiServer.serve).bind(self, *arguments, **named)
        served.append("ApiServer.fire")

    def run_app(app: web.Application, **named: Any) -> None:
        inspect.signature(real_run_app).bind(app, **named)
        served.append("run_app")

    real_run_app = web.run_app
    monkeypatch.setattr(ApiServer, "fire", fire)
    monkeypatch.setattr(web, "run_app", run_app)
    space: dict[str, Any] = {"__name__": "page"}
    for block in blocks_of(page):
        if block.language == "python" and block.runs:
            done = eval(compiled(block), space)
            if inspect.iscoroutine(done):
                await done
    for engine in (value for value in space.values() if isinstance(value, Engine)):
        assert engine.state in ("new", "stopped"), f"{page.name} leaves an engine running"


def commands(block: Block) -> Iterator[list[str]]:
    """The simple commands of a block, as words; what is not a command of asurge's is another's affair."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next((n for n, word in enumerate(words) if word in ("&&", "|", ";", ">")), len(words))
            yield words[:end]
            words = words[end + 1 :]


def of_asurge(block: Block) -> list[list[str]]:
    return [words[1:] for words in commands(block) if words[:1] == ["asurge"]]


def check_command(words: list[str]) -> argparse.Namespace:
    given = command_parser().parse_args([word for word in words if word != "..."])
    fields = {field.name for field in dataclasses.fields(EngineConfig)}
    assert set(parse_settings(getattr(given, "set", []))) <= fields
    return given


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_is_valid_and_its_options_exist(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr
    for words in of_asurge(block):
        check_command(words)
    for words in commands(block):
        if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
            assert (ROOT / (words[2].replace(".", "/") + ".py")).exists(), words[2]


@pytest.mark.parametrize("block", [b for b in SHELL if b.runs and any(c[0] in RUN for c in of_asurge(b) if c)], ids=str)
def test_commands_that_end_run(block: Block) -> None:
    for words in of_asurge(block):
        if words[0] in RUN:
            command = [sys.executable, "-m", "asurge", *words]
            done = subprocess.run(command, input="/quit\n", capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr


async def test_curl_gets_what_the_page_says(demo: Engine) -> None:
    """Requests with curl, sent to a server over the demo model."""
    sent = 0
    async with TestServer(make_app(demo)) as server, aiohttp.ClientSession() as client:
        for block in SHELL:
            for words in commands(block) if block.runs else ():
                if words[0] == "curl":
                    url = server.make_url(re.sub(r"^http://127\.0\.0\.1:8000", "", words[1]))
                    body = words[words.index("-d") + 1] if "-d" in words else None
                    async with client.request("POST" if body else "GET", url, data=body) as answer:
                        assert answer.status == 200, await answer.text()
                    sent += 1
    assert sent


def resolve(path: str) -> object:
    """What a dotted name stands for."""
    parts = path.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for name in parts[split:]:
            found = getattr(found, name)
        return found
    raise AssertionError(path)


def cells(page: str) -> Iterator[tuple[str, str]]:
    for line in (ROOT / "docs" / page).read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| there"):
            there, here = re.split(r"(?<!\\) \| ", line.strip("| "))
            yield there, here


@pytest.mark.parametrize("page", ["coming-from.md", "coming-from-esurge.md"])
def test_names_for_those_who_come_from_elsewhere_exist(page: str) -> None:
    names = 0
    for there, here in cells(page):
        assert there
        assert here
        for code in re.findall(r"`([^`]+)`", here):
            if re.match(r"asurge\.[\w.]+", code):
                resolve(re.match(r"asurge[\w.]+", code).group())  # type: ignore[union-attr]
            elif code.startswith("--set"):
                assert parse_settings(shlex.split(code)[1:]).keys() <= {
                    f.name for f in dataclasses.fields(EngineConfig)
                }
            elif code.startswith("--"):
                assert code.split()[0] in options(command_parser()), code
            elif code.startswith("asurge "):
                command, *rest = code.split()[1:]
                assert command in subcommands(command_parser()), code
                for kind in rest if command == "bench" else ():
                    assert kind in subcommands(subcommands(command_parser())["bench"])
            else:
                continue
            names += 1
    assert names > 50


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def options(parser: argparse.ArgumentParser) -> set[str]:
    own = {name for action in parser._actions for name in action.option_strings}
    return own.union(*(options(inner) for inner in subcommands(parser).values()))


def test_links_between_documents_of_the_checkout_lead_somewhere() -> None:
    """The site's own links are checked when it is built; these are those of the pages at the root."""
    for page in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            assert "://" in target or (ROOT / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_modules_and_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for module in re.findall(r"python -m ((?:benchmarks|tests|tools)[\w.]+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists() or (ROOT / module.replace(".", "/")).is_dir(), module
    for path in re.findall(r"`((?:asurge|tests|tools|benchmarks|examples|docs)/[\w./-]+)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path
    for path in re.findall(
        r"`((?:ops|models|runner|scheduler|pipeline|server|text|parsing|guidance|observe|engine)/[\w./-]+)`", text
    ):
        assert (ROOT / "asurge" / path).exists(), path
