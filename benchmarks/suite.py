"""All workloads on one model: ``python -m benchmarks.suite --model FOLDER [--workloads w1,w2] [--repeat 3] [--store NAME]``.

Each repetition is a fresh process that runs all workloads on one engine, so that the median is also over what differs between
processes (where memory and threads land), and start-up is measured each time. One process before them starts with an empty
compilation cache, and runs nothing. A process during which the machine stood still is run again. The memory's bandwidth is measured before each process and after the last.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asurge.bench.bandwidth import measure_bandwidth
from asurge.bench.machine import describe_machine, load_average
from asurge.bench.roofline import Footprint, roofline
from asurge.bench.workloads import WORKLOADS, named_workload
from asurge.cli.options import parse_settings
from benchmarks.job import run_job
from benchmarks.stalls import undisturbed

RESULTS = Path(__file__).parent / "results"


def run_suite(model: str, workloads: list[str], repeat: int, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """Measure; JSON-ready."""
    busy, bandwidths, warm = load_average(), [], []
    stalls_s: list[float] = []
    with tempfile.TemporaryDirectory() as cache:
        orders = {"model": model, "settings": {**settings, "compilation_cache_dir": cache}, "seed": seed, "warmup": 1}
        say("cold start")
        cold = undisturbed(lambda: _cold_start(orders), stalls_s)
        for turn in range(repeat):
            bandwidths.append(measure_bandwidth())
            say(f"run {turn + 1} of {repeat}: {', '.join(workloads)}")
            turn_orders = {**orders, "workloads": workloads, "seed": seed + turn * 100_000}
            warm.append(undisturbed(partial(run_job, turn_orders), stalls_s))
        bandwidths.append(measure_bandwidth())
    first = warm[0]
    peak = statistics.median(run["peak_resident_bytes"] for run in warm)
    return {
        "model": model,
        "settings": settings,
        "repeat": repeat,
        "machine": describe_machine(),
        "load_average_before": busy,
        "stalls_s": stalls_s,
        "bandwidth_bytes_per_s": {"best": max(bandwidths), "all": bandwidths},
        "cold_start_s": cold["start_s"],
        "warm_start_s": statistics.median(run["start_s"] for run in warm),
        "peak_resident_bytes": peak,
        "weight_bytes": first["weight_bytes"],
        "held_weight_bytes": first["held_weight_bytes"],
        "kv_pool_bytes": first["kv_pool_bytes"],
        "peak_minus_weights_and_kv_bytes": peak - first["held_weight_bytes"] - first["kv_pool_bytes"],
        "compilations_while_serving": max(run["compilations"] for run in warm),
        "skipped": first["skipped"],
        "workloads": {name: _workload(name, warm, max(bandwidths)) for name in first["workloads"]},
    }


def _cold_start(orders: dict[str, Any]) -> dict[str, Any]:
    cache = Path(orders["settings"]["compilation_cache_dir"])
    shutil.rmtree(cache)  # a try before this one may have filled it
    cache.mkdir()
    return run_job({**orders, "workloads": []})


def median_of(documents: list[Any]) -> Any:
    """Merge several documents of one form: the median of each number; of anything else, the first."""
    first = documents[0]
    if isinstance(first, dict):
        return {key: median_of([document[key] for document in documents if document is not None]) for key in first}
    numbers = [value for value in documents if isinstance(value, int | float) and not isinstance(value, bool)]
    return statistics.median(numbers) if numbers else first


def say(text: str) -> None:
    """Progress, beside the figures."""
    print(text, file=sys.stderr, flush=True)


def _workload(name: str, runs: list[dict[str, Any]], bandwidth: float) -> dict[str, Any]:
    documents = [run["workloads"][name] for run in runs]
    found: dict[str, Any] = median_of(documents)
    tpot = found["metrics"]["tpot_ms"]
    weights, held, of_token = (runs[0][key] for key in ("weight_bytes", "held_weight_bytes", "kv_bytes_per_token"))
    footprint = Footprint(weights, held, of_token, vocab_size=0)  # a vocabulary plays no part in a floor
    floor = roofline(
        footprint,
        named_workload(name),
        max_num_seqs=runs[0]["max_num_seqs"],
        bandwidth=bandwidth,
        tpot_ms=None if tpot is None else tpot["p50"],
    )
    spread = [document["metrics"]["output_tokens_per_s"] for document in documents]
    return {
        **found,
        "output_tokens_per_s_of_each_run": spread,
        "roofline": {
            "batch": floor.batch,
            "kv_bytes": floor.kv_bytes,
            "floor_ms": floor.floor_ms,
            "ratio": floor.ratio,
        },
    }


def table_of(result: dict[str, Any]) -> Table:
    """The main figures to read."""
    title = (
        f"{result['model']}: start {result['cold_start_s']:.1f} s cold, {result['warm_start_s']:.1f} s warm; "
        f"peak {result['peak_resident_bytes'] / 2**20:.0f} MiB, {result['peak_minus_weights_and_kv_bytes'] / 2**20:.0f} "
        f"beside weights and KV; reads {result['bandwidth_bytes_per_s']['best'] / 1e9:.1f} GB/s; "
        f"{result['compilations_while_serving']} compilations while serving"
    )
    heads = (
        "workload",
        "seconds",
        "out tok/s",
        "TTFT p50",
        "TTFT p99",
        "TPOT p50",
        "ITL p50",
        "ITL p99",
        "lag p99",
        "lag max",
        "x floor",
    )
    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head, justify="left" if head == "workload" else "right")
    for name, found in result["workloads"].items():
        metrics = found["metrics"]
        latencies = [(metrics[field] or {}).get(share) for field, share in _SHOWN]
        lag = [(found["event_loop_lag_ms"] or {}).get(share) for share in ("p99", "max")]
        cells = [metrics["duration_s"], metrics["output_tokens_per_s"], *latencies, *lag, found["roofline"]["ratio"]]
        table.add_row(
            name, *("-" if cell is None else f"{cell:.2f}" if cell < 100 else f"{cell:.0f}" for cell in cells)
        )
    return table


_SHOWN = (("ttft_ms", "p50"), ("ttft_ms", "p99"), ("tpot_ms", "p50"), ("itl_ms", "p50"), ("itl_ms", "p99"))


def parse_workloads(text: str) -> list[str]:
    """Names of workloads separated by commas."""
    return [named_workload(name).name for name in text.split(",")]


def store(result: dict[str, Any], name: str | None) -> None:
    """Write ``results/NAME.json``."""
    if name:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure all workloads on one model.")
    parser.add_argument("--model", default="demo")
    parser.add_argument(
        "--workloads", type=parse_workloads, default=list(WORKLOADS), metavar="w1,w2,...", help="default: all"
    )
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="engine settings, such as dtype=float32"
    )
    parser.add_argument("--store", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--json", action="store_true", help="print the whole result too")
    given = parser.parse_args()
    result = run_suite(given.model, given.workloads, given.repeat, parse_settings(given.set), given.seed)
    store(result, given.store)
    if given.json:
        print(json.dumps(result, indent=2))
    for name, reason in result["skipped"].items():
        say(f"{name} was left out: {reason}")
    Console(width=max(Console().width, 130)).print(table_of(result))


if __name__ == "__main__":
    main()
