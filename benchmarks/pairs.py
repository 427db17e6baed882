"""Settings of asurge against each other: ``python -m benchmarks.pairs --model FOLDER --workloads w1,w2 --of quantization=int8``.

An engine for each group of settings, all in one process, take turns at every workload: what the machine does in some minutes
affects all alike, and a ratio within a turn holds where figures move by a fifth. The first engine has no settings but those
of ``--set``, which all have; ``--of`` adds an engine and may be repeated. Prompts are the same for all in a turn, and new in
each.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import AsyncExitStack
from typing import Any

import anyio
from rich.console import Console
from rich.table import Table

from asurge import Engine
from asurge.bench.engine_client import EngineClient
from asurge.bench.measure import check_fits, measure_warm
from asurge.bench.metrics import Metrics
from asurge.bench.roofline import read_footprint
from asurge.bench.workloads import WORKLOADS, named_workload, seeded_workloads
from asurge.cli.options import parse_settings
from asurge.models import resolve_checkpoint
from benchmarks.suite import parse_workloads, say

Turns = dict[str, list[Metrics]]
"""Results of each engine, by its name, in all turns of a workload."""


async def run_pairs(
    model: str, groups: dict[str, dict[str, Any]], workloads: list[str], repeat: int, seed: int
) -> dict[str, Turns]:
    """Run the engines in turns, and return their results by workload."""
    found: dict[str, Turns] = {name: {group: [] for group in groups} for name in workloads}
    async with AsyncExitStack() as stack:
        clients = {}
        for group, settings in groups.items():
            engine = Engine(model, **{"silent_mode": True, "strict_context": True, **settings})
            clients[group] = EngineClient(await stack.enter_async_context(engine))
            for name in workloads:
                check_fits(named_workload(name), engine.max_model_len)
        vocab_size = read_footprint(resolve_checkpoint(engine.config.model), engine.config).vocab_size
        for turn in range(repeat):
            say(f"turn {turn + 1} of {repeat}")
            for workload, own_seed in seeded_workloads(workloads, seed + 100_000 * turn):
                for group, client in clients.items():
                    measured = await measure_warm(client, workload, vocab_size=vocab_size, seed=own_seed)
                    found[workload.name][group].append(measured.metrics)
    return found


def table_of(found: dict[str, Turns]) -> Table:
    """Medians over the turns; of ratios, each to the first engine in the same turn."""
    heads = ("workload", "settings", "out tok/s", "x first", "least", "most", "TTFT mean", "ITL p99", "ITL max")
    table = Table(*heads, title="Medians over the turns; ms")
    for name, turns in found.items():
        first = next(iter(turns.values()))
        for group, metrics in turns.items():
            ratios = [
                one.output_tokens_per_s / other.output_tokens_per_s for one, other in zip(metrics, first, strict=True)
            ]
            times = [
                [one.ttft_ms.mean for one in metrics if one.ttft_ms],
                [one.itl_ms.p99 for one in metrics if one.itl_ms],
                [one.itl_ms.max for one in metrics if one.itl_ms],
            ]
            table.add_row(
                name,
                group,
                f"{statistics.median(one.output_tokens_per_s for one in metrics):.0f}",
                *(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))),
                *(f"{statistics.median(values):.0f}" if values else "–" for values in times),
            )
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FOLDER")
    parser.add_argument(
        "--workloads", type=parse_workloads, default=list(WORKLOADS), metavar="w1,w2,...", help="default: all"
    )
    parser.add_argument("--repeat", type=int, default=5, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all engines")
    parser.add_argument("--of", nargs="+", action="append", default=[], metavar="NAME=VALUE", help="of one more engine")
    options = parser.parse_args(arguments)
    common = parse_settings(options.set)
    groups = {"–": common} | {" ".join(given): {**common, **parse_settings(given)} for given in options.of}
    found = anyio.run(run_pairs, options.model, groups, options.workloads, options.repeat, options.seed)
    Console(width=max(Console().width, 120)).print(table_of(found))


if __name__ == "__main__":
    main()
