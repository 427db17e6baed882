"""How a job of another engine talks with `benchmarks.peers`. These files run in that engine's environment: nothing of asurge, and
nothing but the standard library, may be imported here.

Each line of standard input is a JSON document with ``workloads``, a list of ``name``, ``output_len``, ``at_once`` and ``rounds`` of prompts
(workloads whose name begins with ``_`` warm up), and is answered by a line of standard output: for each workload the records
of its requests, in seconds of one clock. The first line also says what to start: ``model``, ``began_s``, ``max_num_seqs``,
``max_model_len``. A workload with ``limit_s`` is cut so long after its beginning. The engine ends with its input.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

Prompt = list[int]


class Stepper(Protocol):
    """An engine that is stepped by hand."""

    def add(self, name: str, prompt: Prompt, output_len: int) -> None:
        """Queue a greedy request of exactly this length."""

    def step(self) -> list[tuple[str, int, bool]]:
        """Run one step; for each request that got tokens, return its name, how many, and whether it is over."""

    def drop(self, name: str) -> None:
        """End a request that is queued or under way."""


Batch = Callable[[list[Prompt], int, Callable[[], None]], None]
"""Completes prompts together; calls back after each token that all of them got."""


def answers() -> TextIO:
    """Standard output for answers alone: what engines and their native libraries print goes to standard error."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


def answer(start: Callable[[dict[str, Any]], Stepper | Batch]) -> None:
    """Start an engine and run the workloads."""
    stream, engine, start_s = answers(), None, 0.0
    for line in sys.stdin:
        orders = json.loads(line)
        if engine is None:
            engine = start(orders)
            start_s, largest = time.time() - orders["began_s"], orders["max_num_seqs"]
        workloads = {workload["name"]: _run(engine, workload, largest) for workload in orders["workloads"]}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        stream.write(json.dumps({"start_s": start_s, "peak_resident_bytes": peak, "workloads": workloads}) + "\n")
        stream.flush()
    os._exit(0)  # some engines hang when their threads are joined


def _run(engine: Stepper | Batch, workload: dict[str, Any], largest: int) -> dict[str, Any]:
    records: list[dict[str, Any]] = []
    rounds_s = []
    until_s = time.perf_counter() + (workload.get("limit_s") or math.inf)
    for prompts in workload["rounds"]:
        began_s = time.perf_counter()
        if began_s > until_s:
            break
        if callable(engine):
            records += _batches(engine, prompts, workload, largest)
        else:
            records += _steps(engine, prompts, workload, len(records), until_s)
        rounds_s.append((began_s, time.perf_counter()))
    return {"records": records, "rounds_s": rounds_s}


def _record(prompt: Prompt) -> dict[str, Any]:
    return {"input_tokens": len(prompt), "sent_s": time.perf_counter(), "ended_s": 0.0, "deliveries": []}


def _steps(
    engine: Stepper, prompts: list[Prompt], workload: dict[str, Any], first: int, until_s: float = math.inf
) -> list[dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    waiting, running = list(enumerate(prompts, first)), set[str]()
    while (waiting or running) and time.perf_counter() < until_s:
        while waiting and len(running) < workload["at_once"]:
            number, prompt = waiting.pop(0)
            name = f"{workload['name']}-{number}"
            records[name] = _record(prompt)
            engine.add(name, prompt, workload["output_len"])
            running.add(name)
        news = engine.step()
        now_s = time.perf_counter()
        for name, tokens, over in news:
            if tokens:
                records[name]["deliveries"].append((now_s, tokens))
            if over:
                records[name]["ended_s"] = now_s
                running.remove(name)
    for name in running:
        engine.drop(name)
        records[name]["ended_s"] = time.perf_counter()
    return list(records.values())


def _batches(complete: Batch, prompts: list[Prompt], workload: dict[str, Any], largest: int) -> list[dict[str, Any]]:
    """Static batches. A request whose batch is not yet due waits; it is sent when the engine could have had it."""
    records: list[dict[str, Any]] = []
    size = min(workload["at_once"], largest)
    all_open = workload["at_once"] >= len(prompts)
    began_s = time.perf_counter()
    for at in range(0, len(prompts), size):
        batch = [_record(prompt) for prompt in prompts[at : at + size]]

        def note(batch: list[dict[str, Any]] = batch) -> None:
            now_s = time.perf_counter()
            for record in batch:
                record["deliveries"].append((now_s, 1))

        complete(prompts[at : at + size], workload["output_len"], note)
        for record in batch:
            record["ended_s"] = time.perf_counter()
            record["sent_s"] = began_s if all_open else record["sent_s"]
        records += batch
    return records
