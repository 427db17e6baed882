"""Workloads that are cut when they take too long: an engine that is 40 times slower must not take 40 times as long to measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import anyio

from asurge.bench.driver import Client
from asurge.bench.measure import WARM_UP_TOKENS, measure
from asurge.bench.records import Record
from asurge.bench.workloads import Workload
from asurge.errors import BenchmarkError


class LimitedClient:
    """A client whose requests are ended at a moment of the event loop's clock; what they got until then counts."""

    def __init__(self, client: Client, until_s: float) -> None:
        self._client, self._until_s = client, until_s

    async def complete(self, prompt: Sequence[int], output_len: int, record: Record, /) -> None:
        """Complete a prompt, or its beginning; nothing is sent when the moment has passed."""
        if anyio.current_time() >= self._until_s:
            return
        with anyio.CancelScope(deadline=self._until_s):
            await self._client.complete(prompt, output_len, record)


async def measure_limited(
    client: Client, workload: Workload, *, vocab_size: int, seed: int, limit_s: float
) -> dict[str, Any]:
    """`measure` within ``limit_s``, JSON-ready. ``metrics`` are None if no token came."""
    limited = LimitedClient(client, anyio.current_time() + limit_s)
    try:
        measured = await measure(limited, workload, vocab_size=vocab_size, seed=seed)
    except BenchmarkError as error:
        return {"metrics": None, "event_loop_lag_ms": None, "failure": str(error)}
    found = measured.document()
    return {"metrics": found["metrics"], "event_loop_lag_ms": found["event_loop_lag_ms"]}


def shortened(workload: Workload) -> Workload:
    """A workload's kind with few requests and short answers, to warm up."""
    few, tokens = min(workload.requests, 2), min(workload.output_len, WARM_UP_TOKENS)
    return dataclasses.replace(workload, requests=few, rounds=1, output_len=tokens)
