"""Figures as tables to read."""

from __future__ import annotations

from rich.table import Table

from asurge.bench.measure import Measurement, Surroundings
from asurge.bench.metrics import Distribution, Metrics
from asurge.bench.workloads import Workload

_LATENCIES = {
    "time to first token (TTFT)": "ttft_ms",
    "time per output token (TPOT)": "tpot_ms",
    "between deliveries (ITL)": "itl_ms",
    "end to end (E2EL)": "e2el_ms",
}


def describe_workload(workload: Workload) -> str:
    """A workload in words."""
    count = f"{workload.rounds} x {workload.requests}" if workload.rounds > 1 else f"{workload.requests}"
    shared = f", {workload.shared_prefix} of them shared" if workload.shared_prefix else ""
    arriving = f", {workload.rate:g} a second" if workload.rate is not None else ""
    return (
        f"{workload.name}: {count} request{'' if count == '1' else 's'}, {workload.most_open} at a time{arriving}, "
        f"{workload.input_len} tokens in{shared}, {workload.output_len} out"
    )


def tables(measurement: Measurement, around: Surroundings | None = None) -> list[Table]:
    """Format the tables that the command prints at the end."""
    metrics = measurement.metrics
    latencies = Table(title=describe_workload(measurement.workload), title_justify="left", title_style="bold")
    latencies.add_column("milliseconds")
    for head in ("mean", "p50", "p90", "p99", "max"):
        latencies.add_column(head, justify="right")
    for label, field in _LATENCIES.items():
        _add_distribution(latencies, label, _latency(metrics, field))
    if measurement.workload.rounds > 1 and measurement.workload.requests > 1:
        _add_distribution(latencies, "a whole round", metrics.round_ms)
    _add_distribution(latencies, "event-loop lag", measurement.lag_ms)
    totals = Table(show_header=False)
    totals.add_column()
    totals.add_column(justify="right")
    for label, value in [*_totals(measurement), *([] if around is None else _surroundings(around))]:
        totals.add_row(label, value)
    return [latencies, totals]


def _latency(metrics: Metrics, field: str) -> Distribution | None:
    found = {
        "ttft_ms": metrics.ttft_ms,
        "tpot_ms": metrics.tpot_ms,
        "itl_ms": metrics.itl_ms,
        "e2el_ms": metrics.e2el_ms,
    }
    return found[field]


def _add_distribution(table: Table, label: str, values: Distribution | None) -> None:
    if values is not None:
        shown = (values.mean, values.p50, values.p90, values.p99, values.max)
        table.add_row(label, *(f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in shown))


def _totals(measurement: Measurement) -> list[tuple[str, str]]:
    metrics = measurement.metrics
    rows = [
        ("requests completed", str(metrics.completed)),
        ("duration", f"{metrics.duration_s:.2f} s"),
        ("requests", f"{metrics.requests_per_s:.2f} /s"),
        ("output tokens", f"{metrics.output_tokens_per_s:.1f} /s"),
        ("all tokens", f"{metrics.total_tokens_per_s:.1f} /s"),
    ]
    if metrics.goodput_per_s is not None:
        rows.append(("goodput", f"{metrics.goodput_per_s:.2f} requests/s"))
    if metrics.tokens_per_delivery is not None:
        rows.append(("tokens a delivery", f"{metrics.tokens_per_delivery.mean:.2f}"))
    if metrics.cached_tokens:
        rows.append(("prompt tokens from the cache", f"{metrics.cached_tokens} of {metrics.input_tokens}"))
    if metrics.failed:
        rows.append((f"failed ({measurement.failures[0]})", str(metrics.failed)))
    if metrics.short:
        rows.append(("ended early", str(metrics.short)))
    return rows


def _surroundings(around: Surroundings) -> list[tuple[str, str]]:
    rows = [
        ("engine start", f"{around.start_s:.1f} s"),
        ("peak resident memory", f"{around.peak_resident_bytes / 2**20:.0f} MiB"),
        ("compilations while serving", str(around.compilations)),
    ]
    if around.roofline is not None:
        roof = around.roofline
        rows += [
            ("memory read bandwidth", f"{roof.bandwidth_bytes_per_s / 1e9:.1f} GB/s"),
            (
                f"a decode step reads (batch of {roof.batch})",
                f"{roof.weight_bytes / 1e6:.0f} MB weights + {roof.kv_bytes / 1e6:.0f} MB KV",
            ),
            ("floor of a decode step", f"{roof.floor_ms:.2f} ms"),
        ]
        if roof.ratio is not None:
            rows.append(("TPOT (p50) over the floor", f"{roof.ratio:.2f} x"))
    return rows
