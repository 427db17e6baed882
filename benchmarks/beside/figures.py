"""Medians and ratios of measurements, and the tables that show them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

Cell = dict[str, Any]
Key = tuple[str, str, str]
"""Workload, engine, neighbour."""
ALONE = "none"
QUOTA, ONE_CORE = "quota-1", "one-core"


def document_of(turns: list[Cell], **facts: Any) -> dict[str, Any]:
    """The facts; for each workload, engine and neighbour the medians and ratios; and every measurement. JSON-ready."""
    by_key: dict[Key, dict[int, Cell]] = {}
    for cell in turns:
        by_key.setdefault((cell["workload"], cell["engine"], cell["neighbour"]), {})[cell["turn"]] = cell
    cells = [_compared(key, by_key, facts["engines"], facts["machine"]["cores"]) for key in by_key]
    return {**facts, "cells": cells, "measurements": turns}


def _compared(key: Key, by_key: dict[Key, dict[int, Cell]], engines: list[str], cores: int) -> Cell:
    """The turns of one cell, in medians, and beside those of the cells that it is to be compared with."""
    workload, engine, neighbour = key
    own, alone = by_key[key], by_key.get((workload, engine, ALONE), {})
    others = {name: by_key.get((workload, name, neighbour), {}) for name in engines if name != engine}
    with_app = [app_figures(cell, alone.get(turn), cores) for turn, cell in own.items() if "app" in cell]
    found: Cell = {
        "workload": workload,
        "engine": engine,
        "neighbour": neighbour,
        "figures": medians([figures_of(cell) for cell in own.values()]),
        "times_slower_than_alone": ratios(alone, own, _speed),
        "times_as_fast_as": {name: ratios(own, theirs, _speed) for name, theirs in others.items() if theirs},
    }
    if neighbour == QUOTA:
        found["ms_over_one_core"] = ratios(own, by_key.get((workload, engine, ONE_CORE), {}), _ms)
    if with_app:
        found["app"] = medians(with_app)
    return found


def figures_of(cell: Cell) -> dict[str, float | None]:
    """The figures to read of one measurement."""
    metrics, scheduler, seconds = cell["metrics"], cell["scheduler"], cell["seconds"]

    def latency(name: str, share: str) -> float | None:
        return metrics[name][share] if metrics and metrics[name] else None

    return {
        "output_tokens_per_s": metrics["output_tokens_per_s"] if metrics else 0.0,
        "ms_per_token": latency("tpot_ms", "p50"),
        "itl_p50_ms": latency("itl_ms", "p50"),
        "itl_p99_ms": latency("itl_ms", "p99"),
        "itl_max_ms": latency("itl_ms", "max"),
        "ttft_p50_ms": latency("ttft_ms", "p50"),
        "ttft_p99_ms": latency("ttft_ms", "p99"),
        "processors_used": scheduler["cpu_s"] / seconds,
        "processors_waited_for": scheduler["wait_s"] / seconds,
        "voluntary_switches_per_s": scheduler["voluntary"] / seconds,
        "involuntary_switches_per_s": scheduler["involuntary"] / seconds,
        "processors_of_neighbour": cell["neighbour_cpu_s"] / seconds,
        "processors_elsewhere": cell["processors_elsewhere"],
        "kernel_threads": cell.get("summary", {}).get("kernel_threads"),
    }


def medians(rows: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Medians by field, of the turns that have a value."""
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None]
        found[name] = statistics.median(values) if values else None
    return found


def ratios(
    over: dict[int, Cell], under: dict[int, Cell], value: Callable[[Cell], float | None]
) -> dict[str, float] | None:
    """The median, least and largest of the ratios within the turns that both have."""
    pairs = [(value(over[turn]), value(under[turn])) for turn in over if turn in under]
    found = [first / second for first, second in pairs if first is not None and second]
    return {"median": statistics.median(found), "least": min(found), "most": max(found)} if found else None


def app_figures(cell: Cell, alone: Cell | None, cores: int) -> dict[str, float | None]:
    """Shares of the processors that an application on the loop and the engine leave each other.

    ``of_what_is_left``: the engine's speed over its speed alone, over the share of the processors that the application leaves.
    """
    left = (cores - cell["app"]["busy_share"]) / cores
    speed = _speed(alone) if alone else 0.0
    lag, without = cell["event_loop_lag_ms"], cell["app_alone"]["event_loop_lag_ms"]
    return {
        "of_what_is_left": _speed(cell) / speed / left if speed else None,
        "left_share": left,
        "lag_p99_ms": lag["p99"] if lag else None,
        "lag_p99_without_engine_ms": without["p99"] if without else None,
        "turns_kept": cell["app"]["turns_per_s"] / cell["app_alone"]["turns_per_s"],
    }


def _speed(cell: Cell) -> float:
    return float(cell["metrics"]["output_tokens_per_s"]) if cell["metrics"] else 0.0


def _ms(cell: Cell) -> float | None:
    return figures_of(cell)["ms_per_token"]


def print_tables(result: dict[str, Any], console: Console) -> None:
    """The main table, and those of engines against each other, of quotas and of applications where there are such cells."""
    for name, reason in result["left_out"].items():
        console.print(f"{name} is left out: {reason.splitlines()[0]}", markup=False)
    tables = (main_table(result), engines_table(result), quota_table(result), app_table(result))
    for table in tables:
        if table.row_count:
            console.print(table)


def main_table(result: dict[str, Any]) -> Table:
    """Every cell, engine by engine. Times in ms; the last columns in processors: what the engine's threads used, what they waited
    for in run queues, what the neighbour used, and what processes used that have no part in it; and how many kernel threads asurge
    says that it has."""
    heads = ("out tok/s", "x slower", "least", "most", "ms/token", "ITL p50", "ITL p99", "TTFT p50", "CPUs", "waits", "put aside/s", "neighbour", "others", "threads")  # fmt: skip
    table = _table(f"{result['model']}, medians of {result['repeat']}", ("workload", "engine", "beside"), heads)
    shown = ("ms_per_token", "itl_p50_ms", "itl_p99_ms", "ttft_p50_ms", "processors_used", "processors_waited_for", "involuntary_switches_per_s", "processors_of_neighbour", "processors_elsewhere", "kernel_threads")  # fmt: skip
    rows = _sorted(result)
    for at, cell in enumerate(rows):
        figures, last = cell["figures"], at + 1 == len(rows) or rows[at + 1]["engine"] != cell["engine"]
        row = [figures["output_tokens_per_s"], *_three(cell["times_slower_than_alone"]), *map(figures.get, shown)]
        table.add_row(cell["workload"], cell["engine"], cell["neighbour"], *map(_number, row), end_section=last)
    return table


def engines_table(result: dict[str, Any]) -> Table:
    """Tokens a second of each engine over the other's, beside the same neighbour in the same turn."""
    columns = ("workload", "beside", "engine", "over")
    table = _table("Times as fast", columns, ("median", "least", "most"))
    names = result["engines"]
    for cell in sorted(_sorted(result), key=lambda cell: result["neighbours"].index(cell["neighbour"])):
        for other, found in cell["times_as_fast_as"].items():
            if names.index(other) > names.index(cell["engine"]):
                row = map(_number, _three(found))
                table.add_row(cell["workload"], cell["neighbour"], cell["engine"], other, *row)
    return table


def quota_table(result: dict[str, Any]) -> Table:
    """A quota of one processor against one processor."""
    table = _table("A quota of one processor", ("workload", "engine"), ("ms/token over one core's", "ITL p99 over p50"))
    for cell in _sorted(result):
        if cell["neighbour"] == QUOTA:
            over, figures = cell["ms_over_one_core"], cell["figures"]
            stall = figures["itl_p99_ms"] / figures["itl_p50_ms"] if figures["itl_p50_ms"] else None
            table.add_row(cell["workload"], cell["engine"], _number(over and over["median"]), _number(stall))
    return table


def app_table(result: dict[str, Any]) -> Table:
    """An application on the engine's loop."""
    heads = ("of what is left", "lag p99", "lag p99 without engine", "turns kept")
    table = _table("An application that computes for half of the time", ("workload", "engine"), heads)
    shown = ("of_what_is_left", "lag_p99_ms", "lag_p99_without_engine_ms", "turns_kept")
    for cell in _sorted(result):
        if "app" in cell:
            table.add_row(cell["workload"], cell["engine"], *(_number(cell["app"][name]) for name in shown))
    return table


def _sorted(result: dict[str, Any]) -> list[Cell]:
    orders = [result[name] for name in ("workloads", "engines", "neighbours")]
    names = ("workload", "engine", "neighbour")
    return sorted(
        result["cells"],
        key=lambda cell: [order.index(cell[name]) for order, name in zip(orders, names, strict=True)],
    )


def _table(title: str, texts: Iterable[str], numbers: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for head in texts:
        table.add_column(head)
    for head in numbers:
        table.add_column(head, justify="right")
    return table


def _three(found: dict[str, float] | None) -> list[float | None]:
    return [found and found[name] for name in ("median", "least", "most")] if found else [None] * 3


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
