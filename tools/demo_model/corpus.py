"""Facts from the standard library of the running interpreter: what each documented function does."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator

_SKIPPED = {
    "antigravity", "this", "idlelib", "turtledemo", "lib2to3", "test", "posix", "posixpath", "ntpath", "nt",
    "ensurepip", "distutils", "pydoc_data", "sre_compile", "sre_constants", "sre_parse", "genericpath",
}  # fmt: skip
_TYPES = (str, bytes, list, tuple, dict, set, int, float)
_LONGEST_SENTENCE = 200
_SHORTEST_SENTENCE = 12
_SIGNATURE = re.compile(r"^[\w.]+\s*\(.*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'`(*])")


@dataclasses.dataclass(frozen=True, slots=True)
class Fact:
    """A documented function: ``os.path.join``, its signature if it has one, and its first sentence."""

    name: str
    signature: str
    sentence: str


def collect_facts() -> list[Fact]:
    """All facts, sorted by name; the same on every run of one Python version.

    A fresh interpreter collects them: libraries replace functions of the standard library (torch does
    `inspect.getfile`), and importing a submodule can hide a function of the same name (`curses.has_key`).
    """
    command = (sys.executable, "-I", __file__)
    printed = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    return [Fact(*row) for row in json.loads(printed)]


def _collect() -> list[Fact]:
    best: dict[int, tuple[tuple[bool, int, str], str, object]] = {}
    for name, value in _functions():
        # A function has many names (os.path.join is posixpath.join): keep the shortest under its own last name.
        rank = (name.rsplit(".", 1)[-1] != getattr(value, "__name__", ""), len(name), name)
        if id(value) not in best or rank < best[id(value)][0]:
            best[id(value)] = (rank, name, value)
    facts = []
    for _, name, value in best.values():
        sentence = first_sentence(inspect.getdoc(value) or "")
        if sentence is not None:
            facts.append(Fact(name.removeprefix("builtins."), _signature(value), sentence))
    return sorted(facts, key=lambda fact: fact.name)


def first_sentence(doc: str) -> str | None:
    """The first sentence of a documentation string on one line, past any signature; None if it has no usable one."""
    lines = inspect.cleandoc(doc).splitlines()
    while lines and (_SIGNATURE.match(lines[0]) or not lines[0].strip()):
        # C functions repeat their signature first: "join(a, *p) -> path", sometimes followed by the text.
        _, dash, rest = lines[0].partition(" -- ")
        lines = [rest, *lines[1:]] if dash else lines[1:]
    paragraph = []
    for line in lines:
        if not line.strip():
            break
        paragraph.append(line.strip())
    text = " ".join(" ".join(paragraph).split())
    sentence = _SENTENCE_END.split(text, maxsplit=1)[0]
    usable = _SHORTEST_SENTENCE <= len(sentence) <= _LONGEST_SENTENCE and sentence.isascii()
    return sentence if usable and sentence[0].isalnum() else None


def _signature(value: object) -> str:
    try:
        text = str(inspect.signature(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    return text if len(text) <= 80 and " at 0x" not in text else ""


def _functions() -> Iterator[tuple[str, object]]:
    for module in _modules():
        for name in sorted(vars(module).get("__all__") or vars(module)):
            value = vars(module).get(name)
            if inspect.isroutine(value) and _is_public(module, name, value):
                yield f"{_public(module)}.{name}", value
    for kind in _TYPES:
        for name, value in sorted(vars(kind).items()):
            if not name.startswith("_") and inspect.isroutine(value):
                yield f"{kind.__name__}.{name}", value


def _is_public(module: types.ModuleType, name: str, value: object) -> bool:
    if "__all__" in vars(module):
        return True
    home = getattr(value, "__module__", None)
    return not name.startswith("_") and home in (None, module.__name__, f"_{module.__name__}", "posix")


def _public(module: types.ModuleType) -> str:
    return "os.path" if module.__name__ in ("posixpath", "ntpath") else module.__name__


def _modules() -> Iterator[types.ModuleType]:
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in _SKIPPED:
            continue
        module = _import(name)
        if module is None:
            continue
        yield module
        for entry in pkgutil.iter_modules(vars(module).get("__path__", ())):
            if not entry.name.startswith("_") and "test" not in entry.name:
                inner = _import(f"{name}.{entry.name}")
                if inner is not None:
                    yield inner
    path = _import("os.path")
    if path is not None:
        yield path


def _import(name: str) -> types.ModuleType | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some modules are deprecated
        try:
            return importlib.import_module(name)
        except Exception:  # some need a display or another operating system
            return None


if __name__ == "__main__":
    print(json.dumps([dataclasses.astuple(fact) for fact in _collect()]))
