"""Requests to an engine in this process, through its public verbs."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from asurge.bench.records import Record
from asurge.engine import Engine
from asurge.params import SamplingParams


class EngineClient:
    """`asurge.bench.driver.Client` over `Engine.stream`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def complete(self, prompt: Sequence[int], output_len: int, record: Record, /) -> None:
        """One completion, read as it grows."""
        params = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True, output_kind="delta")
        taken = 0
        async for output in self._engine.stream(prompt, params):
            if output.num_generated_tokens > taken:
                record.deliver(anyio.current_time(), output.num_generated_tokens - taken)
                taken = output.num_generated_tokens
            record.cached_tokens = output.num_cached_tokens
