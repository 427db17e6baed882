"""Assignment of layers to page tables, and to levels of pages.

A layer whose window has moved past a page has no more use for it, while a layer that sees everything needs all of its pages. So
layers share a page table only with those of the same window. But one pool serves all tables, because nobody knows how long
sequences are going to be: so a page has the same size whatever table it is in, namely levels for
the keys and values of ``depth`` layers. Gemma 3 with 4 full layers and 22 windowed ones has pages of four levels, one table for
the full layers, and six tables for the windowed ones, of which the last has two layers and leaves half of its pages empty.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence

from asurge.plan import RunnerLimits

MOST_TABLES = 8
"""Each one costs the host time when a page is taken or given up, and travels with each step."""

TABLE_PRICE = 1.02
"""Each additional table has to save 2% of the memory."""


@dataclasses.dataclass(frozen=True, slots=True)
class PageLayout:
    """Layout of a model's layers in pages.

    Attributes:
        depth: levels of a page, one for each layer that shares a table.
        windows: by table: no layer that uses it sees more tokens back than this, itself included; None: some sees all.
        places: by layer: its level, and its table.
    """

    depth: int
    windows: tuple[int | None, ...]
    places: tuple[tuple[int, int], ...]


def layout_for(seen: Sequence[int | None], limits: RunnerLimits) -> PageLayout:
    """`choose_layout` for sequences of ``max_model_len``."""
    columns = limits.columns(limits.max_model_len)
    return choose_layout(seen, lambda window: limits.columns_held(window, columns, step=1))


def choose_layout(seen: Sequence[int | None], held: Callable[[int | None], int]) -> PageLayout:
    """The layout in which a sequence of full length takes the least memory, or almost, if that saves tables.

    Args:
        seen: by layer, the most tokens that a query sees, itself included; None: all.
        held: given a window, the pages that a sequence holds at once in a table for it, while it decodes.
    """
    useful = [None if held(window) == held(None) else window for window in seen]
    longest = None if None in useful else max(useful, key=held)
    layouts = []
    for windows in (useful, [longest] * len(useful)):
        layers = defaultdict[int | None, list[int]](list)
        for layer, window in enumerate(windows):
            layers[window].append(layer)
        layouts += [_layout(layers, depth) for depth in range(1, max(map(len, layers.values())) + 1)]

    def price(layout: PageLayout) -> float:
        return layout.depth * sum(map(held, layout.windows)) * TABLE_PRICE ** len(layout.windows)

    return min((layout for layout in layouts if len(layout.windows) <= MOST_TABLES), key=price)


def _layout(layers: dict[int | None, list[int]], depth: int) -> PageLayout:
    """Layers by window, dealt out over tables of ``depth`` layers."""
    windows = list[int | None]()
    places = dict[int, tuple[int, int]]()
    for window, alike in layers.items():
        for index, layer in enumerate(alike):
            places[layer] = (index % depth, len(windows) + index // depth)
        windows += [window] * -(-len(alike) // depth)
    return PageLayout(depth, tuple(windows), tuple(places[layer] for layer in sorted(places)))
