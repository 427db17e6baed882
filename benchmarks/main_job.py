"""Wall-clock and memory of the main job on the demo model: ``python -m benchmarks.main_job``.

Start-up cold (empty compilation cache) and warm, first token, tokens per second for one stream and for 32 at once, each in
a process of its own. Prints JSON, and writes it to ``benchmarks/results/`` with ``--store NAME``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NEW_TOKENS, STREAMS, REPEATS = 128, 32, 5


async def job(model: str, cache: str) -> dict[str, float]:
    """One process's run; times in seconds from the interpreter's start of this module."""
    began = time.perf_counter()
    from asurge import Engine, SamplingParams

    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    async with Engine(model, compilation_cache_dir=cache, silent_mode=True) as engine:
        started = time.perf_counter()
        ones = [await engine.stream(f"What does number {n} do?", params).wait_finished() for n in range(REPEATS)]
        rates = []
        for repeat in range(3):
            at = time.perf_counter()
            prompts = [f"Stream {n} of run {repeat}" for n in range(STREAMS)]
            outputs = await engine.generate(prompts, params, use_tqdm=False)
            rates.append(sum(output.num_generated_tokens for output in outputs) / (time.perf_counter() - at))
        return {
            "start_s": started - began,
            "first_token_s": statistics.median(output.first_token_time or 0.0 for output in ones),
            "one_stream_tokens_per_s": statistics.median(output.tokens_per_second for output in ones),
            f"{STREAMS}_streams_tokens_per_s": statistics.median(rates),
            "peak_resident_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    packages = {name: version(name) for name in ("jax", "flax", "transformers", "anyio")}
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def measure(model: str) -> dict[str, Any]:
    """Cold, then warm."""
    runs: dict[str, Any] = {"model": model, "machine": machine()}
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "warm"):
            command = [sys.executable, "-m", "benchmarks.main_job", "--job", cache, "--model", model]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs[name] = json.loads(done.stdout.splitlines()[-1])
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the main job.")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--store", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--job", metavar="CACHE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        print(json.dumps(asyncio.run(job(given.model, given.job))))
        return
    text = json.dumps(measure(given.model), indent=2)
    print(text)
    if given.store:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{given.store}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
