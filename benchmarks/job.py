"""One process of a benchmark: an engine, some workloads, JSON on the last line of its output. `benchmarks.suite` and
`benchmarks.peers` start it; ``python -m benchmarks.job`` reads its orders from standard input."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def run_job(orders: dict[str, Any]) -> dict[str, Any]:
    """Run a job in a fresh interpreter.

    ``orders``: ``model``; ``settings`` of the engine; ``workloads`` by name; ``seed``; ``warmup`` in rounds; ``whole`` to take
    completions only when finished.

    Raises:
        RuntimeError: it failed; the end of its output is in the message.
    """
    command = [sys.executable, "-m", "benchmarks.job"]
    orders = {**orders, "began_s": time.time()}
    done = subprocess.run(command, input=json.dumps(orders), capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"the job ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


async def job(orders: dict[str, Any]) -> dict[str, Any]:
    """Start the engine, run the workloads one after another, and report what was measured.

    All workloads share the engine: a fresh one for each would add its start-up to each, and since workloads have no prompts in
    common, none leaves anything that the next could use.
    """
    from asurge import Engine
    from asurge.bench.engine_client import EngineClient
    from asurge.bench.machine import count_compilations, peak_resident_bytes
    from asurge.bench.measure import measure_warm
    from asurge.bench.roofline import read_footprint
    from asurge.bench.workloads import seeded_workloads
    from asurge.models import resolve_checkpoint

    settings = {"silent_mode": True, "strict_context": True, **orders["settings"]}
    async with Engine(orders["model"], **settings) as engine:
        start_s = time.time() - orders["began_s"]
        start_peak = peak_resident_bytes()
        footprint = read_footprint(resolve_checkpoint(engine.config.model), engine.config)
        client, measured, skipped = EngineClient(engine, whole=orders.get("whole", False)), {}, {}
        with count_compilations() as compilations:
            for workload, seed in seeded_workloads(orders["workloads"], orders["seed"]):
                if workload.total_len > engine.max_model_len:
                    skipped[workload.name] = f"longer than max_model_len={engine.max_model_len}"
                    continue
                measured[workload.name] = await measure_warm(
                    client, workload, vocab_size=footprint.vocab_size, seed=seed, rounds=orders["warmup"]
                )
        pages = engine.statistics().pages_total
        return {
            "start_s": start_s,
            "start_peak_resident_bytes": start_peak,
            "peak_resident_bytes": peak_resident_bytes(),
            "weight_bytes": footprint.weight_bytes,
            "held_weight_bytes": footprint.held_bytes,
            "kv_bytes_per_token": footprint.kv_bytes_per_token,
            "kv_pool_bytes": pages * engine.config.page_size * footprint.kv_bytes_per_token,
            "max_num_seqs": engine.config.max_num_seqs,
            "compilations": len(compilations),
            "workloads": {name: measurement.document() for name, measurement in measured.items()},
            "skipped": skipped,
        }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(job(json.load(sys.stdin)))))
