"""Memory that sliding windows save, as the scheduler uses it."""

from __future__ import annotations

from asurge.runner.page_layout import layout_for
from benchmarks.capacity import MODELS, SHAPE, context_that_fits


def test_windows_make_room_for_several_times_the_context() -> None:
    model = MODELS["Gemma 3 27B"]
    one, several = layout_for([None] * len(model.seen), SHAPE), layout_for(model.seen, SHAPE)
    assert (one.depth, one.windows) == (62, (None,))
    for length, times in ((2048, 1.7), (8192, 2.1)):
        fits = [context_that_fits(layout, model.token_bytes, 4 << 30, length, 32) for layout in (one, several)]
        assert fits[1] > times * fits[0] > 0
