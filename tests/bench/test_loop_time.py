"""The benchmark of the event loop's time: every stream is read to its end, however it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from asurge.params import OutputKind
from asurge.text import load_tokenizer
from benchmarks import loop_time


@pytest.mark.parametrize("kind", loop_time.KINDS)
async def test_all_tokens_are_read(tiny_folder: Path, kind: OutputKind, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[bool]()

    def look(output: loop_time.RequestOutput) -> None:
        seen.append(output.num_generated_tokens == loop_time.OUTPUT)

    monkeypatch.setattr(loop_time, "look", look)
    found = await loop_time.measure(load_tokenizer(tiny_folder), streams=3, kind=kind, rounds=2)
    assert len(found) == 2
    assert all(us > 0 for us in found)
    assert sum(seen) == (0 if kind == "final" else 6)
