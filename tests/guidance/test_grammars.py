"""Texts written at random under grammars: each must have its form."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import jsonschema
import numpy as np
import pytest

from asurge.errors import InvalidRequestError
from asurge.guidance import Grammars, SequenceConstraint, fill_masks
from asurge.guidance import grammar as grammar_module
from asurge.structured import GuidedDecodingParams
from tests.fakes import Panic
from tests.guidance.schemas import schema
from tests.guidance.walks import VOCAB, grammars, mask_of, start, walk
from tests.text.families import tokenizer

ENDS = tokenizer("byte-level BPE").eos_token_ids
FAMILIES = ["byte-level BPE", "sentencepiece BPE"]


def constraint(family: str = FAMILIES[0], **form: object) -> SequenceConstraint:
    return SequenceConstraint(tokenizer(family).eos_token_ids, VOCAB, grammar=start(family, **form))


def check(text: str | None, wanted: dict[str, Any]) -> None:
    assert text is not None, "the text did not end"
    jsonschema.validate(json.loads(text), wanted, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("block", range(4))
def test_two_hundred_random_schemas(family: str, block: int) -> None:
    for seed in range(50 * block, 50 * block + 50):
        wanted = schema(np.random.default_rng(seed))
        compact = bool(seed % 2)
        check(walk(constraint(family, json=wanted, disable_any_whitespace=compact), seed, family=family), wanted)


@pytest.mark.parametrize("seed", range(5))
def test_recursive_schemas(seed: int) -> None:
    tree = {"type": "object", "properties": {"left": {"$ref": "#/$defs/t"}, "value": {"type": "boolean"}}, "required": ["value"], "additionalProperties": False}  # fmt: skip
    wanted = {"$defs": {"t": {"anyOf": [{"type": "null"}, tree]}}, "$ref": "#/$defs/t"}
    check(walk(constraint(json=wanted), seed, limit=5000), wanted)


@pytest.mark.parametrize("seed", range(5))
def test_any_json_object(seed: int) -> None:
    text = walk(constraint(json_object=True, disable_any_whitespace=True), seed, limit=20_000)
    assert text is not None
    assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize("pattern", ["[a-c]{2,5}", "(foo|bär|baz)+!", "\\d{1,3}(\\.\\d{1,3}){3}", "[^x]y?"])
def test_regexes_match_the_whole_text(pattern: str) -> None:
    for seed in range(10):
        text = walk(constraint(regex=pattern), seed)
        assert text is not None
        assert re.fullmatch(pattern, text, re.DOTALL)


def test_every_choice_comes_and_no_other() -> None:
    choices = ["yes", "yesterday", 'no "way"\\', "größer\n"]
    assert {walk(constraint(choice=choices), seed) for seed in range(60)} == set(choices)


@pytest.mark.parametrize("grammar", ['start: "a"+ ("b" | "cd")', 'root ::= "a"+ ("b" | "cd")'])
def test_lark_and_gbnf(grammar: str) -> None:
    for seed in range(10):
        assert re.fullmatch("a+(b|cd)", walk(constraint(grammar=grammar), seed) or "")


def test_a_structural_tag_binds_what_follows_its_trigger() -> None:
    wanted = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"], "additionalProperties": False}  # fmt: skip
    tag = {"structures": [{"begin": "<f=g>", "schema": wanted, "end": "</f>"}], "triggers": ["<f="]}
    one = constraint(structural_tag=tag)
    free = tokenizer(FAMILIES[0]).encode("Let me see. <f=", add_special_tokens=False)
    one.accept(free)
    text = "<f="
    for _ in range(40):
        token = int(np.random.default_rng(len(text)).choice(mask_of(one)))
        one.accept([token])
        text += tokenizer(FAMILIES[0]).decode([token], skip_special_tokens=False)
        if "</f>" in text:
            break
    inner = text[len("<f=g>") : text.index("</f>")]
    assert text.startswith("<f=g>")
    jsonschema.validate(json.loads(inner), wanted)


def test_masks_do_not_depend_on_how_tokens_come() -> None:
    wanted = schema(np.random.default_rng(3))
    text = walk(constraint(json=wanted), 3)
    ids = tokenizer(FAMILIES[0]).encode(text or "", add_special_tokens=False)
    whole, pieces = constraint(json=wanted), constraint(json=wanted)
    whole.accept(ids)
    for token in ids:
        pieces.accept([token])
    assert mask_of(whole).tolist() == mask_of(pieces).tolist()


def test_many_masks_at_once_are_those_of_each_alone() -> None:
    many = [constraint(json=schema(np.random.default_rng(seed))) for seed in range(20)]
    many += [SequenceConstraint(ENDS, VOCAB)]
    masks = np.full((len(many), VOCAB // 32), 0xFFFFFFFF, np.uint32)
    assert fill_masks(many, masks) == {}
    for one, mask in zip(many, masks, strict=True):
        alone = np.full(VOCAB // 32, 0xFFFFFFFF, np.uint32)
        one.fill(alone)
        assert (mask == alone).all()


def test_a_token_that_does_not_fit_fails_its_own_sequence_only() -> None:
    good, bad = constraint(regex="[a-c]{2,5}"), constraint(regex="[a-c]{2,5}")
    with pytest.raises(Exception, match="token"):
        bad.accept(tokenizer(FAMILIES[0]).encode("z", add_special_tokens=False))
    masks = np.full((2, VOCAB // 32), 0xFFFFFFFF, np.uint32)
    assert set(fill_masks([bad, good], masks)) == {0}
    assert (masks[1] == np.asarray(_fresh_mask("[a-c]{2,5}"))).all()


def test_a_grammar_that_panics_fails_its_own_sequence_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*_: object) -> None:
        raise Panic("in Rust")

    good, bad = constraint(regex="[a-c]{2,5}"), constraint(regex="[a-c]{2,5}")
    monkeypatch.setattr("llguidance.numpy.fill_next_token_bitmask_par", panic)
    monkeypatch.setattr(bad.grammar, "fill", panic)
    masks = np.full((2, VOCAB // 32), 0xFFFFFFFF, np.uint32)
    failed = fill_masks([bad, good], masks)
    assert [(at, type(error)) for at, error in failed.items()] == [(0, Panic)]
    assert (masks[0] == 0xFFFFFFFF).all()
    assert (masks[1] == np.asarray(_fresh_mask("[a-c]{2,5}"))).all()


def _fresh_mask(pattern: str) -> np.ndarray:
    mask = np.full(VOCAB // 32, 0xFFFFFFFF, np.uint32)
    constraint(regex=pattern).fill(mask)
    return mask


DEEP: Any = {"type": "object"}
for _ in range(200):
    DEEP = {"type": "array", "items": DEEP}

HOSTILE: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown type": ({"json": {"properties": {"a/b": {"anyOf": [{"type": "strin"}]}}}}, "json", "/properties/a~1b/anyOf/0"),
    "another document": ({"json": {"$ref": "https://example.com/a.json"}}, "json", "example.com"),
    "nothing behind a reference": ({"json": {"$ref": "#/nope"}}, "json", "nope"),
    "a schema that is itself": ({"json": {"$ref": "#"}}, "json", "no text has this form"),
    "contradiction": ({"json": {"type": "string", "minLength": 5, "maxLength": 2}}, "json", "minLength"),
    "not JSON": ({"json": "{'a': 1}"}, "json", "not JSON"),
    "not a schema": ({"json": "[1]"}, "json", "must be a JSON object"),
    "no object": ({"json": True}, "json", "must be a JSON object"),
    "no object in text": ({"json": "true"}, "json", "must be a JSON object"),
    "wrong beside what may be anything": ({"json": {"type": "strin", "additionalProperties": True}}, "json", "cannot be used: "),
    "wrong beside what may not be": ({"json": {"properties": {"a": False, "b": {"type": "strin"}}}}, "json", "at /properties/b"),
    "lone surrogate": ({"json": {"const": "\ud800"}}, "json", "cannot be used"),
    "lone surrogate as a key": ({"json": {"properties": {"\ud800": {}}, "required": ["\ud800"]}}, "json", "cannot be used"),
    "lone surrogate in text": ({"json": '{"const": "\\ud800"}'}, "json", "cannot be used"),
    "lone surrogate in a regex": ({"regex": "a\ud800"}, "regex", "not valid Unicode at character 1"),
    "lone surrogate in a grammar": ({"grammar": 'start: "\ud800"'}, "grammar", "not valid Unicode"),
    "lone surrogate in GBNF": ({"grammar": 'root ::= "\ud800"'}, "grammar", "not valid Unicode"),
    "lone surrogate in a choice": ({"choice": ["a", "\ud800"]}, "choice[1]", "not valid Unicode"),
    "lone surrogate between tokens": ({"json_object": True, "whitespace_pattern": "\ud800"}, "whitespace_pattern", "not valid Unicode"),
    "lone surrogate in a tag": ({"structural_tag": {"structures": [{"begin": "<\ud800", "schema": {}, "end": ""}], "triggers": ["<"]}}, "structural_tag", "cannot be used"),
    "NaN": ({"json": {"minimum": float("nan")}}, "json", "not JSON"),
    "depth": ({"json": DEEP}, "json", "deeper than 64"),
    "depth in text": ({"json": "[" * 100_000}, "json", "not JSON"),
    "size": ({"json": {"enum": ["x" * 300_000]}}, "json", "at most"),
    "broken regex": ({"regex": "(abc"}, "regex", "unclosed group"),
    "regex blow-up": ({"regex": "(a{1000}){1000}"}, "regex", "too many"),
    "no regex": ({"regex": ""}, "regex", "non-empty"),
    "unknown rule": ({"grammar": "start: nope"}, "grammar", "nope"),
    "broken GBNF": ({"grammar": "root ::= ("}, "grammar", "Expected"),
    "no choice": ({"choice": []}, "choice", "non-empty"),
    "empty choice": ({"choice": ["a", ""]}, "choice[1]", "non-empty"),
    "too many choices": ({"choice": ["a"] * 5000}, "choice", "at most"),
    "tag without trigger": ({"structural_tag": {"structures": [{"begin": "<f>", "schema": {}, "end": ""}], "triggers": ["["]}}, "structural_tag.structures[0]", "none of the triggers"),
    "no tag": ({"structural_tag": True}, "structural_tag", "must be a JSON object"),
    "tag without schema": ({"structural_tag": {"structures": [{"begin": "<f>", "end": ""}], "triggers": ["<"]}}, "structural_tag.structures[0].schema", "JSON schema"),
    "two forms": ({"regex": "a", "json_object": True}, "", "exactly one"),
    "none": ({}, "", "exactly one"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_wrong_and_hostile_forms_are_refused_by_name(case: str) -> None:
    form, param, message = HOSTILE[case]
    with pytest.raises(InvalidRequestError, match=re.escape(message)) as raised:
        grammars().compile(GuidedDecodingParams(**form))
    assert raised.value.param == f"guided_decoding.{param}".rstrip(".")
    assert len(str(raised.value)) < 600


def test_grammars_are_kept_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_module, "CACHED_GRAMMARS", 2)
    own = Grammars(tokenizer(FAMILIES[0]), VOCAB, ENDS)
    forms = [GuidedDecodingParams(regex=pattern) for pattern in ("a", "b", "c")]
    first = own.compile(forms[0])
    assert own.compile(GuidedDecodingParams(regex="a")) is first
    own.compile(forms[1])
    own.compile(forms[2])
    assert own.compile(forms[0]) is not first
    monkeypatch.setattr(grammar_module, "CACHED_SOURCE_BYTES", 0)
    large = GuidedDecodingParams(regex="d")
    assert own.compile(large) is not own.compile(large)


def test_threads_may_compile_at_once() -> None:
    own, found = Grammars(tokenizer(FAMILIES[0]), VOCAB, ENDS), list[Any]()
    forms = [GuidedDecodingParams(json=schema(np.random.default_rng(seed))) for seed in range(8)]
    threads = [threading.Thread(target=lambda: found.extend(own.compile(form) for form in forms)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 32


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    compiled = list[str]()
    inner = Grammars._compiled

    def count(self: Grammars, source: str) -> Any:
        compiled.append(source)
        return inner(self, source)

    monkeypatch.setattr(Grammars, "_compiled", count)
    return compiled


def test_a_wrong_part_is_looked_for_within_bounds_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part in error at the end of every level: 40 levels of 40 would be 1600 compilations."""
    own, compiled = Grammars(tokenizer(FAMILIES[0]), VOCAB, ENDS), counted(monkeypatch)
    wrong: dict[str, Any] = {"type": "string", "pattern": "("}
    for _ in range(20):
        wrong = {"properties": {**{f"p{index}": {"type": "null"} for index in range(40)}, "z": wrong}}
    form = GuidedDecodingParams(json=wrong)
    messages = set()
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match=r"at /properties/z") as raised:
            own.compile(form)
        messages.add(str(raised.value))
    assert len(compiled) <= 65
    assert len(messages) == 1


def test_work_that_is_given_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    own, compiled = Grammars(tokenizer(FAMILIES[0]), VOCAB, ENDS), counted(monkeypatch)
    form = GuidedDecodingParams(regex="abc")

    def give_up() -> None:
        raise TimeoutError

    for _ in range(2):
        with pytest.raises(TimeoutError):
            own.compile(form, give_up)
    assert len(compiled) == 2


def test_only_a_rule_makes_a_grammar_gbnf() -> None:
    for seed in range(5):
        assert walk(constraint(grammar='start: "a::=b"'), seed) == "a::=b"
