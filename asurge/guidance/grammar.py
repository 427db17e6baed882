"""Grammars, compiled by llguidance (https://github.com/guidance-ai/llguidance), with bounds on all they can cost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from asurge.errors import GuidanceError, InvalidRequestError
from asurge.guidance.rules import Mask, has_bit
from asurge.guidance.special_tokens import token_ranges, with_tokens
from asurge.guidance.vocabulary import grammar_tokenizer
from asurge.json_schema import PLACE, Relaxed
from asurge.plan import mask_words
from asurge.structured import JSON_WHITESPACE, GuidedDecodingParams
from asurge.text import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

CACHED_GRAMMARS = 256
CACHED_SOURCE_BYTES = 1 << 20
"""Counts grammars as text. Compiled, they take more: 360 times as much in 250 small schemas, 20 to 130 times in large ones."""

_ERROR_CHARACTERS = 300
_LOOKED_INTO = 64
"""How many parts of a wrong schema are compiled alone, in all, to find the wrong one."""

_OWN, _OTHER = "form", "alternative"
_PLACED, _JSON = f'"{PLACE}"', re.compile(r"%json\s*")
_NO_FORM: dict[str, Any] = dict(json_object=False, regex=None, choice=None, grammar=None, structural_tag=None, alternative=None)  # fmt: skip
_GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)

_INITIAL_FUEL, _STEP_FUEL, _STEP_ITEMS, _GRAMMAR_SIZE, _LEXER_STATES = 200_000, 50_000, 50_000, 100_000, 50_000
_ROW_ITEMS = 8_000
"""llguidance's limits: some tens of milliseconds to compile and for the first mask, a few for later ones, some tens where a
thousand properties are open."""

_TRIED_TOKENS = 3
"""How far into a text a grammar is tried when it is compiled: what is too complex shows when its first parts are open."""


class GrammarState:
    """The state of a grammar's matcher for one sequence.

    Attributes:
        grammar: what it is a state of.
    """

    def __init__(self, matcher: LLMatcher, grammar: Grammar) -> None:
        self.matcher, self.grammar = matcher, grammar

    def fork(self) -> GrammarState:
        """A copy for another sequence."""
        return GrammarState(self.matcher.deep_copy(), self.grammar)

    @property
    def is_accepting(self) -> bool:
        """Whether the text may end here."""
        return bool(self.matcher.is_accepting())

    @property
    def is_stopped(self) -> bool:
        """Whether it must."""
        return bool(self.matcher.is_stopped()) and not self.matcher.is_error()

    def is_begun_by(self, token: int) -> bool:
        """Whether a token is one of the grammar's marks, and may come next."""
        return token in self.grammar.marks and self.matcher.validate_tokens([token]) == 1

    def accept(self, token: int) -> None:
        self.matcher.consume_token(token)
        self.check()

    def fill(self, mask: Mask) -> None:
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self.matcher, mask.view(np.int32)[None])
        self.check()

    def check(self) -> None:
        """Check that the grammar is still followed and within its limits.

        Raises:
            GuidanceError: a token did not fit, or a limit was reached.
        """
        if self.matcher.is_error():
            raise GuidanceError(_brief(self.matcher.get_error()))


@dataclasses.dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled grammar: sequences begin with copies of its first state.

    Attributes:
        marks: special tokens that a text may begin with, as calls do.
        relaxed: what its schemas require and no grammar can express: keywords, with their places.
    """

    first: LLMatcher
    marks: frozenset[int] = frozenset()
    relaxed: tuple[str, ...] = ()

    def start(self) -> GrammarState:
        """The state of a new sequence."""
        return GrammarState(self.first.deep_copy(), self)


class Grammars:
    """Compiles and keeps the grammars of one engine. Safe to use from several threads.

    Args:
        vocab_size: the model's; ids beyond the tokenizer's are never allowed.
        ends: the model's end tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: Iterable[int]) -> None:
        self._tokenizer, self._vocab_size, self._ends = tokenizer, vocab_size, sorted(ends)
        self._lock = threading.Lock()
        self._inner: LLTokenizer | None = None
        self._special: dict[str, int] | None = None
        # What came of each form: its grammar, or why it cannot be used; with the bytes it counts for.
        self._kept: OrderedDict[bytes, tuple[Grammar | InvalidRequestError, int]] = OrderedDict()
        self._kept_bytes = 0

    def compile(self, params: GuidedDecodingParams, check: Callable[[], None] = lambda: None) -> Grammar:
        """The grammar of a form; kept for the next request. Blocks: up to a second for the very first.

        Args:
            check: called between pieces of work; what it raises ends the work, and nothing is kept.

        Raises:
            InvalidRequestError: it is wrong, or too complex; the message says where.
        """
        key = hashlib.sha256(repr(dataclasses.astuple(params)).encode()).digest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return _usable(self._kept[key][0])
        source = ""
        made: Grammar | InvalidRequestError
        try:
            source = self._source(params)
            compiled = self._compiled(source)
            made = dataclasses.replace(compiled, marks=self._marks(params, compiled), relaxed=_relaxed(params))
        except GuidanceError as error:
            made = self._wrong_part(params, check) or self._wrong(params, error, check)
        check()
        self._keep(key, made, len(source))
        return _usable(made)

    def _keep(self, key: bytes, made: Grammar | InvalidRequestError, size: int) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made, size
                self._kept_bytes += size
            while len(self._kept) > CACHED_GRAMMARS or self._kept_bytes > CACHED_SOURCE_BYTES:
                _, (_, size) = self._kept.popitem(last=False)
                self._kept_bytes -= size

    def _compiled(self, source: str) -> Grammar:
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            initial_lexer_fuel=_INITIAL_FUEL,
            step_lexer_fuel=_STEP_FUEL,
            step_max_items=_STEP_ITEMS,
            max_items_in_row=_ROW_ITEMS,
            max_grammar_size=_GRAMMAR_SIZE,
            max_lexer_states=_LEXER_STATES,
            verbose_errors=False,
        )
        matcher = LLMatcher(self._llguidance(), source, log_level=0, limits=limits)
        if matcher.is_error():
            raise GuidanceError(_brief(matcher.get_error()))
        grammar = Grammar(matcher)
        # The first mask does what compiling put off, for all later ones too; further ones find any limit that is hit.
        for _ in range(2):
            state = grammar.start()
            state.fill(np.zeros(mask_words(self._vocab_size), np.uint32))
        self._try(state)
        return grammar

    def _marks(self, params: GuidedDecodingParams, grammar: Grammar) -> frozenset[int]:
        """The special tokens that begin what a grammar binds: of structural tags, whose text is free, the triggers alone."""
        tokens = self._special_tokens()
        if isinstance(params.structural_tag, str):
            tokens = {one: tokens[one] for one in json.loads(params.structural_tag)["triggers"] if one in tokens}
        mask = np.zeros(mask_words(self._vocab_size), np.uint32)
        grammar.start().fill(mask)
        return frozenset(token for token in tokens.values() if token not in self._ends and has_bit(mask, token))

    def _try(self, state: GrammarState) -> None:
        """Write the beginning of a text.

        Raises:
            GuidanceError: a limit is hit.
        """
        for _ in range(_TRIED_TOKENS):
            mask = np.zeros(mask_words(self._vocab_size), np.uint32)
            state.fill(mask)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            allowed = allowed[~np.isin(allowed, self._ends)]
            if state.is_stopped or len(allowed) == 0:
                return
            state.accept(int(allowed[0]))

    def _wrong(
        self, params: GuidedDecodingParams, error: GuidanceError, check: Callable[[], None]
    ) -> InvalidRequestError:
        name = f"guided_decoding.{params.form}"
        return InvalidRequestError(f"{name} cannot be used{self._where(params, check)}: {error}", param=name)

    def _wrong_part(self, params: GuidedDecodingParams, check: Callable[[], None]) -> InvalidRequestError | None:
        """What is wrong with a schema inside a grammar that was made of tools, by the place where that comes from."""
        for place, schema in _schemas_within(params):
            check()
            alone = dataclasses.replace(params, **_NO_FORM, json=json.dumps(schema))
            try:
                self._compiled(self._source(alone))
            except GuidanceError as error:
                return InvalidRequestError(f"{place} cannot be used{self._where(alone, check)}: {error}", param=place)
            except InvalidRequestError:
                continue
        return None

    def _where(self, params: GuidedDecodingParams, check: Callable[[], None]) -> str:
        """The JSON pointer of the innermost part of a schema that does not compile alone, as far as it is looked for."""
        if params.json is None:
            return ""
        assert isinstance(params.json, str)
        pointer, schema = "", json.loads(params.json)
        shared = {key: schema[key] for key in ("$defs", "definitions") if isinstance(schema, dict) and key in schema}
        parts = _subschemas(schema)
        for _ in range(_LOOKED_INTO):
            part = next(parts, None)
            if part is None:
                break
            check()
            if self._fails(params, part[1], shared):
                pointer += part[0]
                parts = _subschemas(part[1])
        return f" at {pointer}" if pointer else ""

    def _fails(self, params: GuidedDecodingParams, schema: Any, shared: dict[str, Any]) -> bool:
        if isinstance(schema, bool):  # right anywhere but alone
            return False
        alone = json.dumps({**shared, **schema} if isinstance(schema, dict) else schema)
        try:
            self._compiled(self._source(dataclasses.replace(params, json=alone)))
        except (GuidanceError, InvalidRequestError):
            return True
        return False

    def _llguidance(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        with self._lock:
            if self._inner is None:
                text = self._tokenizer.to_json()
                if text is None:
                    raise InvalidRequestError(
                        "guided_decoding needs a tokenizer with a tokenizer.json, which this model lacks",
                        param="guided_decoding",
                    )
                known = grammar_tokenizer(text, self._vocab_size)
                self._inner = LLTokenizer(known, n_vocab=self._vocab_size, eos_token=self._ends)
            return self._inner

    def _source(self, params: GuidedDecodingParams) -> str:
        """A form as one of llguidance's grammars.

        Raises:
            GuidanceError: it cannot be written as one.
            InvalidRequestError: GBNF that cannot be read, or there is nothing to compile with.
        """
        try:
            return self._written(params)
        except InvalidRequestError:
            raise
        except ValueError as error:
            raise GuidanceError(_brief(str(error))) from error

    def _written(self, params: GuidedDecodingParams) -> str:
        if params.alternative is None:
            return json.dumps({"grammars": [self._own(params)]})
        # Each has a lexer of its own: what both may begin with must be the same lexeme, or differ in its first characters.
        either = {"lark_grammar": f"start: @{_OWN} | @{_OTHER}"}
        other = {"lark_grammar": with_tokens(_lark(params.alternative), self._special_tokens())}
        return json.dumps({"grammars": [either, {**self._own(params), "name": _OWN}, {**other, "name": _OTHER}]})

    def _own(self, params: GuidedDecodingParams) -> dict[str, Any]:
        """The form itself, as one of llguidance's grammars."""
        from llguidance import regex_to_lark

        if params.json is not None or params.json_object:
            schema = json.loads(params.json) if isinstance(params.json, str) else {"type": "object"}
            return {"json_schema": {**Relaxed(schema).schema, "x-guidance": _json_options(params)}}
        if params.regex is not None:
            return {"lark_grammar": f"start: /{regex_to_lark(params.regex, use_ascii='d')}/"}
        if params.choice is not None:
            # One terminal: as rules, thousands of options would all be open at once.
            options = " | ".join(json.dumps(one, ensure_ascii=False) for one in params.choice)
            return {"lark_grammar": f"start: CHOICE\nCHOICE: {options}"}
        if params.grammar is not None:
            return {"lark_grammar": with_tokens(_lark(params.grammar), self._special_tokens())}
        assert isinstance(params.structural_tag, str)
        return {"lark_grammar": self._tags(json.loads(params.structural_tag), params)}

    def _tags(self, tag: dict[str, Any], params: GuidedDecodingParams) -> str:
        """Free text, including special tokens that trigger nothing, and tags that bind what follows a trigger."""
        tokens = self._special_tokens()
        triggers = sorted(tag["triggers"], key=len, reverse=True)
        options, rules = list[str](), list[str]()
        for index, one in enumerate(tag["structures"]):
            trigger = next(trigger for trigger in triggers if one["begin"].startswith(trigger))
            literal, begin, end = (
                json.dumps(text, ensure_ascii=False) if text else ""
                for text in (trigger, one["begin"].removeprefix(trigger), one["end"])
            )
            schema = json.dumps({**Relaxed(one["schema"]).schema, "x-guidance": _json_options(params)})
            options.append(f"tag_{index}")
            rules.append(f"trigger_{index}[lazy]: TEXT {literal}")
            rules.append(f"tag_{index}: trigger_{index} {begin} %json {schema} {end}")
        others = {token for text, token in tokens.items() if text not in triggers}.difference(self._ends)
        if others:
            options.append("other")
            rules.append(f"other: TEXT {token_ranges(others)}")
        lines = ["%llguidance {}", f"start: ({' | '.join(options)})* rest", "rest: TEXT", *rules, r"TEXT: /(.|\n)*/"]
        return with_tokens("\n".join(lines), tokens)

    def _special_tokens(self) -> dict[str, int]:
        """Ids, by text, of the tokens that no literal in a grammar matches."""
        if self._special is None:
            inner = self._llguidance()
            added = self._tokenizer.added_tokens
            self._special = {text: token for text, token in added.items() if inner.is_special_token(token)}
        return self._special


def _schemas_within(params: GuidedDecodingParams) -> Iterator[tuple[str, dict[str, Any]]]:
    """Schemas in grammars and tags that say where they come from, with these places."""
    schemas = list[Any]()
    if isinstance(params.structural_tag, str):
        schemas += (one["schema"] for one in json.loads(params.structural_tag)["structures"])
    for text in (params.grammar, params.alternative):
        if text is not None and _PLACED in text:
            try:
                schemas += (json.JSONDecoder().raw_decode(text, found.end())[0] for found in _JSON.finditer(text))
            except (ValueError, RecursionError):  # somebody else's grammar
                continue
    for schema in schemas:
        inner = schema.get("properties") if isinstance(schema, dict) else None
        for one in (schema, *(inner.values() if isinstance(inner, dict) else ())):
            if isinstance(one, dict) and isinstance(one.get(PLACE), str):
                yield one[PLACE], schema
                break


def _relaxed(params: GuidedDecodingParams) -> tuple[str, ...]:
    """List what a format's own schemas require and no grammar can express."""
    if isinstance(params.json, str):
        return tuple(Relaxed(json.loads(params.json)).notes)
    if not isinstance(params.structural_tag, str):
        return ()
    structures = enumerate(json.loads(params.structural_tag)["structures"])
    return tuple(f"{note} of structures[{at}]" for at, one in structures for note in Relaxed(one["schema"]).notes)


def _usable(made: Grammar | InvalidRequestError) -> Grammar:
    if isinstance(made, InvalidRequestError):
        # A new one each time: tracebacks grow on errors that are raised again.
        raise InvalidRequestError(str(made), param=made.param)
    return made


def _json_options(params: GuidedDecodingParams) -> JsonCompileOptions:
    if params.disable_any_whitespace:
        return {"whitespace_flexible": False, "lenient": True}
    return {"whitespace_pattern": params.whitespace_pattern or JSON_WHITESPACE, "lenient": True}


def _lark(grammar: str) -> str:
    """Lark as it is; GBNF, whose rules are names before ``::=``, translated.

    Raises:
        InvalidRequestError: GBNF that cannot be read.
    """
    if _GBNF_RULE.search(grammar) is None:
        return grammar
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return any_to_lark(grammar)
    except Exception as error:  # the translator raises what its parser raises
        name = "guided_decoding.grammar"
        raise InvalidRequestError(f"{name} cannot be used: {_brief(str(error))}", param=name) from error


def _subschemas(schema: Any) -> Iterator[tuple[str, Any]]:
    """The schemas inside a schema, with their JSON pointers."""
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in ("properties", "patternProperties") and isinstance(value, dict):
            yield from ((f"/{key}/{name.replace('~', '~0').replace('/', '~1')}", one) for name, one in value.items())
        elif key in ("anyOf", "oneOf", "allOf", "prefixItems") and isinstance(value, list):
            yield from ((f"/{key}/{index}", one) for index, one in enumerate(value))
        elif key in ("items", "additionalProperties", "not", "contains"):
            yield f"/{key}", value


def _brief(message: str) -> str:
    """On one line, and of bounded length."""
    if message.startswith("NoExtension"):
        return "no text has this form"
    return " ".join(message.replace("<non-verbose/>", "").split())[:_ERROR_CHARACTERS]
