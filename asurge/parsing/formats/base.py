"""Base classes of all formats of tool calls."""

from __future__ import annotations

import abc
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from asurge.parsing.delimiters import marks_of
from asurge.parsing.events import Output
from asurge.parsing.reader import MalformedError, Reader, Wait

Tools = Sequence[Mapping[str, Any]]
"""Tools as OpenAI defines them: ``{"type": "function", "function": {"name", "parameters", ...}}``."""

SPECIAL_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot|>", "<|eom|>", "<|header_start|>", "<|header_end|>",
    "<|start_of_role|>", "<|end_of_role|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>",
    "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|python_tag|>",
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>",
)  # fmt: skip
"""Special tokens of all families: where text is decoded with special tokens, these are never part of the answer."""


class ToolFormat(abc.ABC):
    """The format in which a family of models writes tool calls.

    Attributes:
        needs_special_tokens: some of its marks are special tokens, or are in some models: text must be decoded with
            them. `SPECIAL_TOKENS` then never reach the content.
        hidden: further marks that never reach the content, as `marks` never do: those within and behind calls.
    """

    needs_special_tokens: ClassVar[bool] = True
    hidden: ClassVar[tuple[str, ...]] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        """Marks that stand around calls, and nowhere else."""
        return ()

    @abc.abstractmethod
    def read(self, reader: Reader, out: Output, hidden: frozenset[str], tools: Tools) -> Wait[None]:
        """Read a text to its end: content and calls.

        Args:
            hidden: all that must not reach the content.
            tools: for formats in which the type of a value depends on its schema.
        """

    @abc.abstractmethod
    def tags(self, tools: Tools) -> dict[str, Any] | None:
        """Return a structural tag for `asurge.GuidedDecodingParams`, which constrains only the arguments of calls.

        Text is free, but the arguments of a call fit its tool's schema. None where the arguments are not JSON.
        """

    @abc.abstractmethod
    def grammar(self, tools: Tools, *, parallel: bool) -> str | None:
        """A grammar, in llguidance's dialect of Lark, for one call of one of the tools, or if ``parallel`` for one or more.

        Marks are literals in it: `asurge.guidance` knows which are special tokens. None where the format cannot write the
        tools' names.
        """

    def call_id(self) -> str:
        """An id for a call without one, as the family's chat templates accept it when the call comes back."""
        return f"call_{secrets.token_hex(12)}"


class MarkedFormat(ToolFormat):
    """A format whose calls begin with a mark.

    Attributes:
        begins: the marks.
        around: further marks, around calls, that say nothing.
    """

    begins: ClassVar[tuple[str, ...]]
    around: ClassVar[tuple[str, ...]] = ()

    @property
    def marks(self) -> tuple[str, ...]:
        return tuple(mark for mark in (*self.begins, *self.around) if not mark.startswith("{"))

    def read(self, reader: Reader, out: Output, hidden: frozenset[str], tools: Tools) -> Wait[None]:
        marks = marks_of(hidden.union(self.begins, self.around))
        if (first := self.first(reader, out)) is not None:
            yield from attempt(reader, out, "", first, marked=False)
        while (mark := (yield from reader.until(marks, out.content))) is not None:
            if mark in self.begins:
                call = self.call(mark, reader, out, tools)
                yield from attempt(reader, out, mark, call, marked=mark in self.marks)
            elif mark in self.around:
                out.mark(of_calls=True)
            else:
                out.part()

    def first(self, reader: Reader, out: Output) -> Wait[None] | None:
        """Read a call that begins the text without a mark, as `call` does; None if the format has no such calls."""
        return None

    @abc.abstractmethod
    def call(self, mark: str, reader: Reader, out: Output, tools: Tools) -> Wait[None]:
        """Read what follows a mark: one or more calls.

        Raises:
            MalformedError: it is not a call, or breaks off.
        """


def attempt(reader: Reader, out: Output, begun: str, call: Wait[None], *, marked: bool) -> Wait[None]:
    """Read a call.

    What turns out not to be one is content, from what has begun it on; a call that has started stays as it is, and whatever
    follows the place where it can be read no further is content. What the end of the text cuts off is none.

    Args:
        begun: the text that was read before.
        marked: that was a mark; otherwise a text that ends within its first call is no call.
    """
    calls = out.num_calls
    reader.keep(begun)
    try:
        yield from call
        reader.forget()
    except MalformedError:
        is_call = marked or out.in_call or out.num_calls > calls
        if out.in_call:
            out.end(whole=False)
        if is_call and reader.closed:
            reader.drop()
        else:
            out.refused(reader.kept())


def functions(tools: Tools) -> Iterable[tuple[str, dict[str, Any]]]:
    """Names and parameters of tools; parameters are the schema of an object."""
    for tool in tools:
        function = tool.get("function", tool)
        schema = dict(function.get("parameters") or {})
        schema.setdefault("type", "object")
        if "properties" not in schema and len(schema) == 1:
            schema["properties"] = {}
        yield function["name"], schema
