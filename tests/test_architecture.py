"""What the layout promises beyond the import contracts: sizes, calls that are banned, and what tests share."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "asurge"
FILES = sorted(ROOT.rglob("*.py"))
LONGEST_FILE, LONGEST_CLASS, LONGEST_FUNCTION = 500, 300, 80


def name_of(path: Path) -> str:
    return path.relative_to(ROOT.parent).as_posix()


def calls(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_sizes(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            size, kind = node.end_lineno - node.lineno + 1, isinstance(node, ast.ClassDef)
            assert size <= (LONGEST_CLASS if kind else LONGEST_FUNCTION), f"{node.name} has {size} lines"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_banned_calls(path: Path) -> None:
    name, tree = name_of(path), ast.parse(path.read_text())
    for call, line in calls(tree):
        where = f"{name}:{line}"
        assert call not in ("eval", "exec", "pickle.load", "pickle.loads", "asyncio.create_task", "hasattr"), where
        assert not call.endswith("ensure_future"), where
        if call.endswith(".create_task"):  # tasks that outlive their callers; these files say why
            assert name in ("asurge/engine/life_cycle.py", "asurge/blocking.py", "asurge/server/lifespan.py"), where
        if call == "print":
            assert name.startswith("asurge/cli/"), where
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):  # internal invariants only: a user's input gets a typed error
            assert name not in (
                "asurge/params.py",
                "asurge/config.py",
                "asurge/engine/admission.py",
                "asurge/engine/input_processor.py",
                "asurge/engine/prompts.py",
            ), f"{name}:{node.lineno}"


def test_nothing_is_imported_from_tests() -> None:
    """What tests share is in modules of its own."""
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                for name in (prefix + one.name for one in node.names):
                    assert not re.match(r"tests\.(.*\.)?test_", name), f"{path.name}:{node.lineno}"
