"""How a job of another engine talks with `benchmarks.peers`. These files run in that engine's environment: nothing of asurge, and
nothing but the standard library, may be imported here.

Orders come as JSON on standard input: ``model``, ``began_s``, ``max_num_seqs``, ``max_model_len``, and ``workloads`` as lists of ``name``,
``output_len``, ``at_once`` and ``rounds`` of prompts; workloads whose name begins with ``_`` warm up. The answer is the last
line of standard output: for each workload the records of its requests, in seconds of one clock.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

Prompt = list[int]


class Stepper(Protocol):
    """An engine that is stepped by hand."""

    def add(self, name: str, prompt: Prompt, output_len: int) -> None:
        """Queue a greedy request of exactly this length."""

    def step(self) -> list[tuple[str, int, bool]]:
        """One step: for each request that got tokens, its name, how many, and whether it is over."""


Batch = Callable[[list[Prompt], int, Callable[[], None]], None]
"""Completes prompts together; calls back after each token that all of them got."""


def answer(start: Callable[[dict[str, Any]], Stepper | Batch]) -> None:
    """Start an engine and run the workloads."""
    # What engines and their native libraries print goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    orders = json.load(sys.stdin)
    engine = start(orders)
    start_s = time.time() - orders["began_s"]
    workloads = {}
    for workload in orders["workloads"]:
        records: list[dict[str, Any]] = []
        rounds_s = []
        for prompts in workload["rounds"]:
            began_s = time.perf_counter()
            if callable(engine):
                records += _batches(engine, prompts, workload, orders["max_num_seqs"])
            else:
                records += _steps(engine, prompts, workload, len(records))
            rounds_s.append((began_s, time.perf_counter()))
        workloads[workload["name"]] = {"records": records, "rounds_s": rounds_s}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answers.write(json.dumps({"start_s": start_s, "peak_resident_bytes": peak, "workloads": workloads}) + "\n")
    answers.flush()
    os._exit(0)  # some engines hang when their threads are joined


def _record(prompt: Prompt) -> dict[str, Any]:
    return {"input_tokens": len(prompt), "sent_s": time.perf_counter(), "ended_s": 0.0, "deliveries": []}


def _steps(engine: Stepper, prompts: list[Prompt], workload: dict[str, Any], first: int) -> list[dict[str, Any]]:
    records: dict[str, dict[str, Any]] = {}
    waiting, running = list(enumerate(prompts, first)), 0
    while waiting or running:
        while waiting and running < workload["at_once"]:
            number, prompt = waiting.pop(0)
            name = f"{workload['name']}-{number}"
            records[name] = _record(prompt)
            engine.add(name, prompt, workload["output_len"])
            running += 1
        news = engine.step()
        now_s = time.perf_counter()
        for name, tokens, over in news:
            if tokens:
                records[name]["deliveries"].append((now_s, tokens))
            if over:
                records[name]["ended_s"] = now_s
                running -= 1
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
