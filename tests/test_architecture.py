"""Rules of the layout beyond the import contracts: sizes, banned calls, docstrings, and modules that tests share."""

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
    """Helpers that tests share are in modules of their own."""
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
                for name in (prefix + one.name for one in node.names):
                    assert not re.match(r"tests\.(.*\.)?test_", name), f"{path.name}:{node.lineno}"


def documented(
    tree: ast.Module,
) -> Iterator[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """The module, and its public classes, functions and methods."""
    yield "module", tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, node
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.name.startswith("_"):
                    yield f"{node.name}.{method.name}", method


FRAGMENT = re.compile(r"(Of|By|As|In|With|For|From|To|What|Where|Which|How|One|Raises|Returns)\b")
"""Words that begin a summary which withholds its noun or verb."""


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_docstrings_begin_with_a_summary(path: Path) -> None:
    """A docstring's first line is a sentence that stands alone. Methods without a docstring have that of their base class."""
    for name, node in documented(ast.parse(path.read_text())):
        docstring = ast.get_docstring(node)
        if docstring is None:
            assert "." in name, f"{name} has no docstring"
            continue
        summary, *rest = docstring.splitlines()
        assert summary[0].isupper() or summary[0] == "`", f"{name}: {summary!r} is not capitalised"
        assert summary.endswith("."), f"{name}: {summary!r} does not end with a period"
        assert not FRAGMENT.match(summary), f"{name}: {summary!r} is a fragment"
        assert not rest or not rest[0].strip(), f"{name}: no blank line follows {summary!r}"
