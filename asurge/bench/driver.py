"""Sends a workload's requests and watches the event loop meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import anyio

from asurge.bench.records import Load, Record
from asurge.bench.workloads import Workload
from asurge.errors import AsurgeError

LAG_INTERVAL_S = 0.01


class Client(Protocol):
    """The interface through which a benchmark sends requests."""

    async def complete(self, prompt: Sequence[int], output_len: int, record: Record, /) -> None:
        """Ask for one greedy completion of exactly ``output_len`` tokens, and note each delivery.

        Raises:
            AsurgeError: the request was refused or failed.
        """


async def drive(
    client: Client,
    workload: Workload,
    prompts: Sequence[Sequence[Sequence[int]]],
    *,
    seed: int = 0,
    on_done: Callable[[Record], object] = lambda record: None,
) -> Load:
    """Run all rounds of a workload. A failing request is noted in its record and ends nothing else.

    With a rate and a limit on open requests, a request's time counts from its sending, not from its arrival.
    """
    load = Load([], [])
    for turn, batch in enumerate(prompts):
        began_s = anyio.current_time()
        load.records.extend(await _round(client, workload, batch, workload.arrivals_s(seed + turn), on_done))
        load.rounds_s.append((began_s, anyio.current_time()))
    return load


async def _round(
    client: Client,
    workload: Workload,
    batch: Sequence[Sequence[int]],
    arrivals_s: Sequence[float],
    on_done: Callable[[Record], object],
) -> list[Record]:
    began_s, places = anyio.current_time(), anyio.CapacityLimiter(workload.most_open)

    async def one(prompt: Sequence[int], record: Record) -> None:
        async with places:
            record.sent_s = anyio.current_time()
            try:
                await client.complete(prompt, workload.output_len, record)
                if not record.deliveries:
                    record.error = "the request ended without a token"
            except AsurgeError as error:
                record.error = str(error)
            record.ended_s = anyio.current_time()
        on_done(record)

    records = [Record(len(prompt)) for prompt in batch]
    async with anyio.create_task_group() as tasks:
        for prompt, record, arrival_s in zip(batch, records, arrivals_s, strict=True):
            if workload.rate is not None:
                await anyio.sleep_until(began_s + arrival_s)
            tasks.start_soon(one, prompt, record)
    return records


class LagMonitor:
    """Measure the event loop's lag: how late it wakes a coroutine, and so what anything else on this loop waits for."""

    def __init__(self, interval_s: float = LAG_INTERVAL_S) -> None:
        self.samples_s: list[float] = []
        self._interval_s = interval_s

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            due_s = anyio.current_time() + self._interval_s
            await anyio.sleep(self._interval_s)
            self.samples_s.append(max(anyio.current_time() - due_s, 0.0))
