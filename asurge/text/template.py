"""Chat templates in a sandbox that bounds what they compute and what they make.

The sandbox and its names are those of transformers' ``apply_chat_template``, for which templates are written. What is added:
each block, call and filter looks at the clock, and what operators, calls and filters make is bounded. A template written to do
harm can still spend seconds inside one filter; requests bring none.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

TEMPLATE_TIMEOUT_S = 2.0
"""How long the renderings of one request may compute: many messages take a few milliseconds."""

MAX_CHARACTERS = 1 << 25
_MAX_BITS = 1 << 12
_TICKS = 16
_WIDTHS, _NUMBER = re.compile(r"%(?:\([^)]*\))?([^a-zA-Z%]*[a-zA-Z%])"), re.compile(r"\d{1,12}")
_REASONING = ("reasoning_content", "thinking", "reasoning")


class TemplateLimitError(TemplateError):
    """A template computes for too long, or makes too much."""


class Allowance:
    """Limits on all renderings together, counted in their thread's own time, which other load does not lengthen.

    Args:
        clock: seconds that the thread has computed.
    """

    def __init__(self, seconds: float = TEMPLATE_TIMEOUT_S, clock: Callable[[], float] = time.thread_time) -> None:
        self._seconds, self._left, self._clock = seconds, seconds, clock
        self._ticks, self._end = 0, 0.0

    @contextmanager
    def spent(self) -> Iterator[None]:
        """Count what is rendered within."""
        self._end = self._clock() + self._left
        before = _ALLOWED.set(self)
        try:
            yield
        finally:
            _ALLOWED.reset(before)
            self._left = self._end - self._clock()

    def tick(self) -> None:
        """Check that the allowance is not used up.

        Raises:
            TemplateLimitError: it is used up.
        """
        self._ticks += 1
        if self._ticks % _TICKS == 0 and self._clock() > self._end:
            raise TemplateLimitError(
                f"it computes for more than {self._seconds:g} s: send fewer messages, or use a simpler template"
            )


_ALLOWED: ContextVar[Allowance] = ContextVar("asurge.template")


class _Code(CodeGenerator):
    """Code that looks at the clock in each block, and bounds ``~``."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("environment.tick()")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat(map(str, (")
        for one in node.nodes:
            self.visit(one, frame)
            self.write(", ")
        self.write(")))")


class _Generation(Extension):
    """``{% generation %}``, which marks what a model says in training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _PlainNamespace(Namespace):
    """A namespace whose names do not reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Code
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _tojson
        self.filters = {name: _bounded(one) for name, one in self.filters.items()}
        self.globals.pop("lipsum")
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "namespace": _PlainNamespace,
        }

    def tick(self) -> None:
        _ALLOWED.get().tick()

    def concat(self, pieces: Iterable[str]) -> str:
        found, size = [], 0
        for piece in pieces:
            size += len(piece)
            _check_size(size)
            found.append(piece)
        return "".join(found)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        return _within_bounds(functools.partial(super().call, __context, __obj), args, kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * right}.get(operator, 0)
            if bits > _MAX_BITS:
                raise TemplateLimitError(f"it makes a number of more than {_MAX_BITS} bits")
        elif operator == "+" and isinstance(left, Sequence) and isinstance(right, Sequence):
            _check_size(len(left) + len(right))
        elif operator == "*" and isinstance(left, int) and isinstance(right, Sequence):
            _check_size(left * len(right))
        elif operator == "*" and isinstance(left, Sequence) and isinstance(right, int):
            _check_size(len(left) * right)
        elif operator == "%" and isinstance(left, str):
            written = _NUMBER.findall("".join(_WIDTHS.findall(left)))
            given = [one for one in right if isinstance(one, int)] if "*" in left and isinstance(right, tuple) else []
            _check_size(max((*map(int, written), *given), default=0))
        return super().call_binop(context, operator, left, right)


def render_template(source: str, allowance: Allowance, messages: Sequence[Mapping[str, Any]], /, **names: Any) -> str:
    """Messages through a template.

    Raises:
        TemplateLimitError: it takes more than is allowed.
        Exception: what the template raises.
    """
    with allowance.spent():
        given = [_as_templates_know_it(message) for message in messages]
        return _compiled(source).render({"documents": None, **_plain(names), "messages": given})


@functools.lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    return _environment().from_string(source)


@functools.cache
def _environment() -> _Environment:
    return _Environment()


def _as_templates_know_it(message: Mapping[str, Any]) -> dict[str, Any]:
    """Drop empty fields, and with reasoning under each of its names."""
    found: dict[str, Any] = _plain({name: value for name, value in message.items() if value is not None})
    reasoning = next((found[name] for name in _REASONING if name in found), None)
    return found if reasoning is None else {"thinking": reasoning, **found, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """JSON as it is, and for anything else the name of its type: other objects have methods that the sandbox knows nothing
    about."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    return f"<{type(value).__name__}>"


def _bounded(work: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(work)  # including what jinja is to hand to a filter
    def bounded(*args: Any, **kwargs: Any) -> Any:
        return _within_bounds(work, args, kwargs)

    return bounded


def _within_bounds(work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call one of Python's own, such as ``center`` and ``replace``."""
    _ALLOWED.get().tick()
    for one in (*args, *kwargs.values()):
        if isinstance(one, int):
            _check_size(one)
    found = work(*args, **kwargs)
    if isinstance(found, str):
        _check_size(len(found))
    return found


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise TemplateLimitError(f"it makes more than {MAX_CHARACTERS} characters")


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"namespaces hold no names that begin with an underscore, such as {name!r}")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Not for HTML, unlike jinja's own. Where lines are indented, a small but deeply nested value becomes very long."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None:
        return encoder.encode(value)
    return _environment().concat(_ticking(encoder.iterencode(value)))


def _ticking(pieces: Iterable[str]) -> Iterator[str]:
    for piece in pieces:
        _ALLOWED.get().tick()
        yield piece
