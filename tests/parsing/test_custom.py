"""Texts of custom tools come out of their calls' arguments, however these are cut into pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asurge.parsing.custom import CustomInput
from tests.parsing.pieces import cut

TEXTS = st.text(max_size=40) | st.text('\\"/\n\t\x00u0dD8é😀', max_size=40)


def read(pieces: list[str]) -> str:
    one = CustomInput()
    return "".join(map(one.feed, pieces)) + one.finish()


@given(TEXTS, st.booleans(), st.lists(st.integers(0, 200), max_size=10))
def test_a_text_comes_back(text: str, ascii_only: bool, cuts: list[int]) -> None:
    written = json.dumps({"input": text}, ensure_ascii=ascii_only)
    assert read(cut(written, cuts)) == read(list(written)) == text


@given(TEXTS, st.booleans())
def test_a_text_that_is_cut_off_is_a_beginning(text: str, ascii_only: bool) -> None:
    written = json.dumps({"input": text}, ensure_ascii=ascii_only)
    for size in range(len(written)):
        assert text.startswith(read([written[:size]]))


def test_a_text_comes_as_it_is_written() -> None:
    one = CustomInput()
    assert [one.feed(piece) for piece in ('{ "in', 'put" :"a', "b\\", 'nc"', "}")] == ["", "a", "b", "\nc", ""]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("{}", ""),
        ("{", ""),
        ('{"other": 1}', '{"other": 1}'),
        ('{"input": {"a": 1}}', '{"input": {"a": 1}}'),
        ('{"why": "so", "input": "x"}', "x"),
        ('{"input": "x", "why": "so"}', "x"),
        ('{"input": "\\ud83d!"}', "\ufffd!"),
        ('{"input": "\\ud83d\\n"}', "\ufffd\n"),
        ('{"why": 1, "input": "\\udc00"}', "\ufffd"),
    ],
)
def test_other_arguments(arguments: str, text: str) -> None:
    assert read(list(arguments)) == read([arguments]) == text
