"""Figures as a picture: latencies as cumulative shares, gaps as a histogram, throughput over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from asurge.bench.measure import Measurement
from asurge.bench.records import Load
from asurge.bench.report import describe_workload
from asurge.errors import BenchmarkError

_BINS = 60
_GAPS_A_BIN = 4


def check_plot(path: Path) -> None:
    """Check, before anything is measured, that a plot can be written.

    Raises:
        BenchmarkError: matplotlib is missing, or the path is not one it can write.
    """
    figure_class()
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise BenchmarkError(f"a plot is written as .png, .svg or .pdf, not {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise BenchmarkError(f"{path} cannot be written: its folder does not exist")


def figure_class() -> Any:  # matplotlib may be missing
    """Return matplotlib's `Figure`, which draws to files without a window.

    Raises:
        BenchmarkError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchmarkError("plots need matplotlib: pip install asurge[bench]") from error
    return Figure


def plot(measurement: Measurement, path: Path) -> None:
    """Write the picture of one measurement."""
    figure = figure_class()(figsize=(11, 7.5), layout="constrained")
    figure.suptitle(describe_workload(measurement.workload), fontsize=11)
    (first, per_token), (gaps, over_time) = figure.subplots(2, 2)
    done = [record for record in measurement.load.records if record.error is None]
    _shares(first, [record.first_token_s for record in done], "Time to first token (ms)")
    _shares(per_token, [record.per_token_s for record in done], "Time per output token (ms)")
    values = [gap * 1000 for record in done for gap in record.gaps_s]
    if values:
        gaps.hist(values, bins=_BINS, color="tab:blue")
        gaps.set_yscale("log")
    gaps.set(title="Time between deliveries (ITL)", xlabel="ms", ylabel="deliveries")
    at_s, rates = throughput_over_time(measurement.load, _bins(measurement))
    over_time.step(at_s, rates, where="mid", color="tab:green")
    over_time.set(title="Throughput", xlabel="seconds", ylabel="output tokens / s")
    over_time.set_ylim(bottom=0)
    for axes in (first, per_token, gaps, over_time):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def _bins(measurement: Measurement) -> int:
    """Spans of several deliveries each: in shorter ones the count would jump between steps."""
    gap = measurement.metrics.itl_ms
    if gap is None or gap.p50 <= 0:
        return _BINS
    return max(8, min(_BINS, int(measurement.metrics.duration_s * 1000 / (_GAPS_A_BIN * gap.p50))))


def throughput_over_time(load: Load, bins: int = _BINS) -> tuple[list[float], list[float]]:
    """Middles of equal spans of the load's time, and the output tokens a second in each."""
    began_s, ended_s = load.rounds_s[0][0], load.rounds_s[-1][1]
    width_s = max((ended_s - began_s) / bins, 1e-9)
    counts = [0] * bins
    for record in load.records:
        for at_s, tokens in record.deliveries:
            counts[min(int((at_s - began_s) / width_s), bins - 1)] += tokens
    return [(index + 0.5) * width_s for index in range(bins)], [count / width_s for count in counts]


def _shares(axes: Any, values_s: list[float | None], title: str) -> None:
    ordered = sorted(value * 1000 for value in values_s if value is not None)
    axes.set(title=title, xlabel="ms", ylabel="share of requests", ylim=(0, 1.02))
    if not ordered:
        return
    shares = [(index + 1) / len(ordered) for index in range(len(ordered))]
    axes.step([ordered[0], *ordered], [0.0, *shares], where="post")
    for percent, style in ((50, ":"), (90, "--"), (99, "-.")):
        at = np.percentile(ordered, percent)
        axes.axvline(at, linestyle=style, linewidth=1, color="tab:gray", label=f"p{percent} {at:.1f} ms")
    axes.legend(loc="lower right", fontsize=8)
