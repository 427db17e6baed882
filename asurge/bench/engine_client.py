"""Requests to an engine in this process, through its public verbs."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from asurge.bench.records import Record
from asurge.engine import Engine
from asurge.params import OutputKind, SamplingParams


class EngineClient:
    """`asurge.bench.driver.Client` over `Engine.stream`.

    Args:
        whole: take each completion only when finished, as `Engine.generate` does, instead of reading it as it grows.
    """

    def __init__(self, engine: Engine, *, whole: bool = False) -> None:
        self._engine = engine
        self._kind: OutputKind = "final" if whole else "delta"

    async def complete(self, prompt: Sequence[int], output_len: int, record: Record, /) -> None:
        """Complete one prompt."""
        params = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True, output_kind=self._kind)
        taken = 0
        async for output in self._engine.stream(prompt, params):
            if output.num_generated_tokens > taken:
                record.deliver(anyio.current_time(), output.num_generated_tokens - taken)
                taken = output.num_generated_tokens
            record.cached_tokens = output.num_cached_tokens
