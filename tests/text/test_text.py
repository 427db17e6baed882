"""Stop strings, context fitting, chat templates, loading."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from asurge.errors import ChatTemplateError, InvalidRequestError, PromptTooLongError, TokenizerError
from asurge.text import StopMatcher, Tokenizer, fit_prompt, load_tokenizer, render_chat
from tests.text.families import FAMILIES, tokenizer

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"


# ── stop strings ────────────────────────────────────────────────────────────────────────────────


def reference(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """Character by character: the first moment at which the text so far ends with a stop string."""
    for end in range(1, len(text) + 1):
        endings = [stop for stop in stops if text[:end].endswith(stop)]
        if endings:
            stop = max(endings, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
    include=st.booleans(),
)
def test_stopping_does_not_depend_on_how_text_is_cut(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    matcher = StopMatcher(tuple(stops), include)
    ends = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    shown, matched = "", None
    for begin, end in pairwise(ends):
        scan = matcher.push(text[begin:end])
        shown, matched = shown + scan.text, scan.matched
        expected, _ = reference(text, tuple(stops), include)
        assert expected.startswith(shown)  # no part of a stop string has leaked
    if matched is None:
        shown += matcher.flush()
    assert (shown, matched) == reference(text, tuple(stops), include)


class Counted(str):
    """A string that counts how often it is looked into."""

    looks = 0

    def __getitem__(self, at: Any) -> str:
        Counted.looks += 1
        return super().__getitem__(at)

    def startswith(self, *given: Any) -> bool:
        Counted.looks += 1
        return super().startswith(*given)


@pytest.mark.parametrize("text", ["a" * 4000, ("a" * 998 + "c") * 4, ("a" * 499 + "b" + "a" * 498) * 4, "ab" * 2000])
def test_looking_for_stop_strings_takes_time_in_proportion_to_the_text(text: str) -> None:
    Counted.looks = 0
    stops = tuple(Counted("a" * (499 + at) + "b" + "a" * (499 - at) + "!") for at in range(8))
    matcher = StopMatcher(stops)
    for at in range(0, len(text), 4):
        matcher.push(text[at : at + 4])
    assert Counted.looks < 8 * len(text) * len(stops)


@given(
    text=st.lists(st.sampled_from(["a" * 9, "b", "ab" * 4, "aab", "abaab"]), max_size=12).map("".join),
    stops=st.lists(
        st.sampled_from(["a" * 12 + "b", "ab" * 6, "aabaabaaab", "b", "abaababaab"]), min_size=1, max_size=3
    ),
    size=st.integers(1, 7),
)
def test_stop_strings_that_repeat_themselves_are_found(text: str, stops: list[str], size: int) -> None:
    matcher, shown = StopMatcher(tuple(stops)), ""
    for at in range(0, len(text), size):
        scan = matcher.push(text[at : at + size])
        shown += scan.text
        expected, matched = reference(text[: at + size], tuple(stops), False)
        held = max((n for stop in stops for n in range(len(stop)) if expected.endswith(stop[:n])), default=0)
        assert (shown, scan.matched) == (expected if matched else expected[: len(expected) - held], matched)
        if matched:
            return
    assert shown + matcher.flush() == text


# ── context ─────────────────────────────────────────────────────────────────────────────────────


def fit(size: int, max_tokens: int | None, **settings: object) -> tuple[int, int, int]:
    fitted = fit_prompt(range(size), max_model_len=100, max_tokens=max_tokens, **settings)  # type: ignore[arg-type]
    return len(fitted.token_ids), fitted.max_tokens, fitted.truncated


def test_what_fits_is_left_alone() -> None:
    assert fit(60, 40) == (60, 40, 0)
    assert fit(60, None) == (60, 40, 0)


def test_the_answer_is_capped_before_the_prompt_is_cut() -> None:
    assert fit(90, 40) == (90, 10, 0)
    assert fit(150, 40) == (99, 1, 51)
    assert fit(150, 40, reserve_tokens=20) == (80, 20, 70)
    assert fit(90, 40, prefer_preserve_prompt=False) == (60, 40, 30)


@pytest.mark.parametrize(("mode", "kept"), [("left", [6, 7, 8, 9]), ("right", [0, 1, 2, 3]), ("middle", [0, 1, 8, 9])])
def test_truncate_modes(mode: str, kept: list[int]) -> None:
    fitted = fit_prompt(range(10), max_model_len=5, max_tokens=1, truncate_mode=mode)  # type: ignore[arg-type]
    assert list(fitted.token_ids) == kept


def test_strict_context_refuses_with_numbers() -> None:
    with pytest.raises(PromptTooLongError, match=r"150 tokens.*max_model_len=100") as refused:
        fit(150, 40, strict_context=True)
    assert refused.value.param == "prompt"
    with pytest.raises(PromptTooLongError, match="auto_truncate_prompt"):
        fit(150, 40, auto_truncate_prompt=False)
    with pytest.raises(PromptTooLongError, match="auto_cap_new_tokens"):
        fit(50, 200, auto_cap_new_tokens=False)
    with pytest.raises(InvalidRequestError, match="empty"):
        fit(0, 1)


@given(
    size=st.integers(1, 300),
    max_tokens=st.none() | st.integers(1, 300),
    reserve=st.none() | st.integers(0, 120),
    prefer=st.booleans(),
    mode=st.sampled_from(["left", "right", "middle"]),
)
def test_everything_fitted_fits(
    size: int, max_tokens: int | None, reserve: int | None, prefer: bool, mode: str
) -> None:
    kept, answer, cut = fit(size, max_tokens, reserve_tokens=reserve, prefer_preserve_prompt=prefer, truncate_mode=mode)
    assert kept + answer <= 100
    assert min(kept, answer) >= 1
    assert kept + cut == size


# ── chat and loading ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    fast = PreTrainedTokenizerFast(tokenizer_object=FAMILIES["byte-level BPE"](), bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


def test_loading_finds_all_end_tokens(loaded: Tokenizer) -> None:
    assert loaded.eos_token_ids == {1, 7}
    assert loaded.decode(loaded.encode("Grüße 🎉")) == "Grüße 🎉"


def test_end_tokens_of_a_language_model_beside_an_image_encoder(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "config.json").write_text(json.dumps({"model_type": "llama4", "text_config": {"eos_token_id": [3, 7]}}))
    assert load_tokenizer(copy).eos_token_ids == {1, 3, 7}


def test_a_missing_or_broken_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_messages_are_rendered(loaded: Tokenizer) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert render_chat(loaded, messages) == "[user]ab[assistant]"
    assert render_chat(loaded, messages, chat_template="{{ messages[0].content }}!") == "ab!"


@pytest.mark.parametrize(
    "messages",
    [[], "hello", {"role": "user"}, ["x"], [{"role": "boss", "content": "x"}], [{"role": "user"}],
     [{"role": "user", "content": 3}], [{"role": "user", "content": [{"type": "image_url"}]}]],
)  # fmt: skip
def test_malformed_messages_are_refused(loaded: Tokenizer, messages: object) -> None:
    with pytest.raises(ChatTemplateError, match="messages"):
        render_chat(loaded, messages)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for _ in range(10**9) %}x{% endfor %}",
        "{% if %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_hostile_and_broken_templates_fail_safely(loaded: Tokenizer, template: str) -> None:
    with pytest.raises(ChatTemplateError, match="template failed"):
        render_chat(loaded, [{"role": "user", "content": "x"}], chat_template=template)


def test_own_arguments_cannot_be_overridden(loaded: Tokenizer) -> None:
    with pytest.raises(ChatTemplateError, match="tokenize"):
        render_chat(loaded, [{"role": "user", "content": "x"}], template_kwargs={"tokenize": True})


def test_no_template_has_a_remedy() -> None:
    bare = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=FAMILIES["unigram"](), eos_token="</s>"))
    with pytest.raises(ChatTemplateError, match="chat_template="):
        render_chat(bare, [{"role": "user", "content": "x"}])


def test_conversations_with_tools_may_have_a_template_of_their_own() -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=FAMILIES["byte-level BPE"](), eos_token="</s>")
    fast.chat_template = {"default": "plain", "tool_use": "<tool_call>"}
    named = Tokenizer(fast)
    assert (named.chat_template, named.tool_template) == ("plain", "<tool_call>")
    ask: list[dict[str, str]] = [{"role": "user", "content": "x"}]
    assert (render_chat(named, ask), render_chat(named, ask, tools=[{}])) == ("plain", "<tool_call>")
    fast.chat_template = {"default": "plain"}
    assert Tokenizer(fast).tool_template == "plain"
    fast.chat_template = "one"
    assert Tokenizer(fast).tool_template == "one"


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_bytes_that_add_up(family: str) -> None:
    own = tokenizer(family)
    text = "größer 日本 ≈ end"
    ids = own.encode(text, add_special_tokens=False)
    joined = b"".join(map(own.token_bytes, ids)).decode()
    assert joined.strip() == own.decode(ids).strip() or own.decode(ids) != text
