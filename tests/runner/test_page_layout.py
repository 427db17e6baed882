"""Layers dealt out over page tables and arrays: each has a place of its own, and pages are as small as is worth it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asurge.runner.page_layout import MOST_TABLES, PageLayout, choose_layout

GEMMA_3_1B = [None if layer % 6 == 5 else 512 for layer in range(26)]


def held(columns: int) -> Callable[[int | None], int]:
    """Pages of 64 tokens that a sequence of so many columns holds."""
    return lambda window: columns if window is None else min(columns, -(-(window - 1) // 64) + 1)


@given(
    seen=st.lists(st.sampled_from([None, 64, 512, 4096]), min_size=1, max_size=70),
    columns=st.integers(1, 200),
)
def test_each_layer_has_a_slot_in_a_page_table_with_its_window(seen: list[int | None], columns: int) -> None:
    layout = choose_layout(seen, held(columns))
    assert len(set(layout.places)) == len(seen)
    assert 1 <= len(layout.windows) <= MOST_TABLES
    for window, (array, table) in zip(seen, layout.places, strict=True):
        assert 0 <= array < layout.depth
        kept = layout.windows[table]
        assert kept is None or (window is not None and kept >= window) or held(columns)(window) == held(columns)(None)
    assert layout.depth * sum(map(held(columns), layout.windows)) <= len(seen) * columns


@pytest.mark.parametrize("seen", [[None] * 30, [4096] * 32])
def test_layers_that_are_alike_share_one_table(seen: list[int | None]) -> None:
    places = tuple((layer, 0) for layer in range(len(seen)))
    assert choose_layout(seen, held(128)) == PageLayout(len(seen), (seen[0],), places)


def test_a_window_as_long_as_the_context_is_full_attention() -> None:
    assert choose_layout([4096, None] * 13, held(64)).windows == (None,)


def test_one_windowed_layer_among_many_is_not_worth_a_table() -> None:
    assert choose_layout([512] + [None] * 47, held(128)).windows == (None,)


@pytest.mark.parametrize(
    ("seen", "depth", "windows"),
    [
        (GEMMA_3_1B, 4, (512,) * 6 + (None,)),
        ([None if layer % 6 == 5 else 1024 for layer in range(62)], 10, (1024,) * 6 + (None,)),
        ([None if layer % 2 else 4096 for layer in range(42)], 21, (4096, None)),
        ([None if layer % 4 == 3 else 8192 for layer in range(48)], 12, (8192,) * 3 + (None,)),
    ],
    ids=["Gemma 3 1B", "Gemma 3 27B", "Gemma 2 9B", "Llama 4 Scout"],
)
def test_shapes_of_models(seen: list[int | None], depth: int, windows: tuple[int | None, ...]) -> None:
    layout = choose_layout(seen, held(512))
    assert (layout.depth, layout.windows) == (depth, windows)
