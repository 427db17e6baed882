"""asurge in a process of its own, asked for one workload after another: ``python -m benchmarks.beside.asurge_job``.

The first line of standard input says what to start (``model``, ``settings``, ``began_s``); each later one a measurement
(``workload`` by its fields, ``seed``, ``limit_s``, ``app`` for an application on the same loop, ``app_alone_s`` to watch it without
requests before). Each is answered by a line of JSON. The engine ends with its input.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import anyio
import anyio.to_thread

from asurge import Engine
from asurge.bench.engine_client import EngineClient
from asurge.bench.machine import count_compilations, peak_resident_bytes
from asurge.bench.roofline import read_footprint
from asurge.bench.workloads import Workload
from asurge.models import resolve_checkpoint
from benchmarks.beside.application import Application, lag_without_engine, share
from benchmarks.beside.limited import measure_limited
from benchmarks.peer_jobs.protocol import answers


async def serve() -> None:
    """Start, and answer until the input ends."""
    stream, orders = answers(), json.loads(sys.stdin.readline())
    settings = {"silent_mode": True, "strict_context": True, **orders["settings"]}
    async with Engine(orders["model"], **settings) as engine:
        vocab_size = read_footprint(resolve_checkpoint(engine.config.model), engine.config).vocab_size
        answer: dict[str, Any] = {"start_s": time.time() - orders["began_s"], "max_model_len": engine.max_model_len}
        while True:
            print(json.dumps(answer), file=stream, flush=True)
            line = await anyio.to_thread.run_sync(sys.stdin.readline)
            if not line:
                return
            answer = await _measured(engine, json.loads(line), vocab_size)


async def _measured(engine: Engine, orders: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    workload, client, application = Workload(**orders["workload"]), EngineClient(engine), Application()
    alone_s = orders["app_alone_s"]
    found: dict[str, Any] = {"app_alone": await lag_without_engine(alone_s)} if alone_s else {}
    began_s = time.perf_counter()
    with count_compilations() as compilations:
        async with anyio.create_task_group() as tasks:
            if orders["app"]:
                tasks.start_soon(application.run)
            found |= await measure_limited(
                client, workload, vocab_size=vocab_size, seed=orders["seed"], limit_s=orders["limit_s"]
            )
            tasks.cancel_scope.cancel()
    if orders["app"]:
        found["app"] = share(application, began_s)
    summary = engine.get_metrics_summary()
    return {
        **found,
        "compilations": len(compilations),
        "peak_resident_bytes": peak_resident_bytes(),
        "summary": summary,
    }


if __name__ == "__main__":
    anyio.run(serve)
