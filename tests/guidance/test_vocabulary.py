"""Forms over vocabularies with tokens that are found in text, that the model lacks, or that are none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from asurge import Engine, SamplingParams
from asurge.errors import GuidanceError, InvalidRequestError, RequestFailedError
from asurge.guidance import Grammars
from asurge.plan import mask_words
from asurge.server.errors import failure_of
from asurge.structured import GuidedDecodingParams
from tests.conftest import TINY
from tests.guidance.walks import VOCAB, allowed, start
from tests.text.families import tokenizer_with

MARKS = {"<call>": True, "<think>": False, "[INST]": True, "plain": False}
FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "choice": ({"choice": ["a{}b"]}, "a{}b"),
    "regex": ({"regex": "a({mark})b"}, "a{}b"),
    "const": ({"json": {"const": "a{}b"}}, '"a{}b"'),
    "enum": ({"json": {"enum": ["{}"]}}, '"{}"'),
    "a property": ({"json": {"type": "object", "properties": {"{}": {"type": "null"}}, "required": ["{}"], "additionalProperties": False}}, '{"{}": null}'),
}  # fmt: skip


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("case", FORMS)
def test_fixed_text_may_hold_the_text_of_a_token(case: str, mark: str) -> None:
    form, text = FORMS[case]
    own = tokenizer_with(MARKS)
    escaped = mark.replace("[", r"\[").replace("]", r"\]")
    given = json.loads(json.dumps(form).replace("({mark})", json.dumps(escaped)[1:-1]).replace("{}", mark))
    if case == "a property":
        given["json"] = json.loads(json.dumps(form["json"]).replace("{}", mark))
    state = (
        Grammars(own, VOCAB, own.eos_token_ids)
        .compile(GuidedDecodingParams(**given, **({"disable_any_whitespace": True} if "json" in given else {})))
        .start()
    )
    ids = list[int]()
    while not state.is_stopped and len(ids) < 100:
        options = [token for token in allowed(state).tolist() if token not in own.eos_token_ids]
        if not options:
            break
        ids.append(options[0])
        state.accept(ids[-1])
    said = own.decode(ids, skip_special_tokens=False)
    assert said.replace(" ", "") == text.replace("{}", mark).replace(" ", "")


def test_a_grammar_may_name_a_token() -> None:
    own = tokenizer_with({"<call>": True})
    state = Grammars(own, VOCAB, own.eos_token_ids).compile(GuidedDecodingParams(grammar='start: <call> "a"')).start()
    assert allowed(state).tolist() == own.encode("<call>", add_special_tokens=False)


@pytest.mark.parametrize("missing", [1, 3])
def test_tokens_that_the_model_lacks_are_not_drawn(missing: int) -> None:
    own = tokenizer_with({f"<extra {at}>": bool(at % 2) for at in range(4)})
    size = own.vocab_size - missing
    state = Grammars(own, size, own.eos_token_ids).compile(GuidedDecodingParams(regex="(?s:.{3})")).start()
    mask = np.zeros(mask_words(size), np.uint32)
    state.fill(mask)
    assert np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).max() < size


async def test_texts_of_tokens_that_the_model_lacks_are_refused(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1, 10**6]

    monkeypatch.setattr(tiny.tokenizer, "encode", encode)
    monkeypatch.setattr(tiny.tokenizer, "decode", lambda *_, **__: "<extra>")
    with pytest.raises(InvalidRequestError, match="<extra>"):
        await tiny.generate("a", SamplingParams(max_tokens=1))
    with pytest.raises(InvalidRequestError, match="<extra>"):
        await tiny.chat([{"role": "user", "content": "a"}], SamplingParams(max_tokens=1))


async def test_end_tokens_that_are_none_are_left_out(tiny_folder: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with Engine(str(tiny_folder), **{**TINY, "extra_eos_token_ids": (99_999_999,)}) as engine:
        form = GuidedDecodingParams(choice=["yes", "no"])
        (told,) = await engine.generate(["a"], SamplingParams(max_tokens=9, guided_decoding=form))
        assert told.get_text() in ("yes", "no")
    assert "end tokens [99999999] are outside the vocabulary" in caplog.text


LARGE: dict[str, dict[str, Any]] = {
    "choices": {"choice": [f"option {at}" for at in range(4096)]},
    "long choices": {"choice": [f"{at} " + "word " * 40 for at in range(1000)]},
    "properties": {"json": {"type": "object", "properties": {f"p{at}": {"type": "null"} for at in range(1000)}}},
    "required properties": {"json": {"type": "object", "properties": {f"p{at}": {"type": "null"} for at in range(300)}, "required": [f"p{at}" for at in range(300)]}},
    "an enum": {"json": {"enum": [f"value {at}" for at in range(4000)]}},
}  # fmt: skip


@pytest.mark.parametrize("case", LARGE)
def test_large_forms_are_written(case: str) -> None:
    rng, state = np.random.default_rng(0), start(**LARGE[case])
    for _ in range(60):
        state.accept(int(rng.choice(allowed(state))))
        if state.is_stopped:
            break


@pytest.mark.parametrize("form", [
    {"grammar": "start: a0\n" + "\n".join(f"a{at}: a{at + 1} a{at + 1} | a{at + 1} a{at + 1} a{at + 1}" for at in range(50)) + '\na50: "x"'},
    {"json": {"type": "object", "properties": {f"p{at}": {"type": "null"} for at in range(3000)}}},
])  # fmt: skip
def test_what_is_too_large_is_refused_when_it_is_compiled(form: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="items"):
        start(**form)


def test_a_limit_that_is_hit_later_is_no_reason_to_try_again() -> None:
    error = RequestFailedError("failed: try again")
    error.__cause__ = GuidanceError("Too many items")
    told = failure_of(error)
    assert (told.status, told.code, told.message) == (400, "constraint_failed", "Too many items")
    assert failure_of(RequestFailedError("failed: try again")).status == 500
