"""A timeline of steps: what the host did while the device computed."""

from __future__ import annotations

import dataclasses
from collections import deque
from pathlib import Path

import orjson

from asurge.bench.plot import figure_class
from asurge.errors import BenchmarkError
from asurge.pipeline import STAGES, Stage

_KEPT = 60_000
_SHOWN_STEPS = 16
_FORMATS = (".json", ".png", ".svg", ".pdf")
_HOST: tuple[Stage, ...] = ("plan", "dispatch", "sample", "apply", "deliver")


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A stage of a step; times in seconds on one clock."""

    stage: Stage
    step_id: int
    begin_s: float
    end_s: float


class StepTrace:
    """`asurge.pipeline.StepObserver` that keeps the latest spans."""

    def __init__(self) -> None:
        self._spans = deque[Span](maxlen=_KEPT)

    def saw(self, stage: Stage, step_id: int, begin_s: float, end_s: float) -> None:
        self._spans.append(Span(stage, step_id, begin_s, end_s))

    def clear(self) -> None:
        """Forget what was seen, as after a warm-up."""
        self._spans.clear()

    @property
    def spans(self) -> list[Span]:
        return list(self._spans)

    @property
    def device_share(self) -> float:
        """Share of the time from the first span to the last in which the device computed, whatever the step."""
        device = sorted((span.begin_s, span.end_s) for span in self._spans if span.stage == "device")
        if not device:
            return 0.0
        began_s = until_s = device[0][0]
        busy_s = 0.0
        for begin_s, end_s in device:
            busy_s += max(end_s - max(begin_s, until_s), 0.0)
            until_s = max(until_s, end_s)
        return min(busy_s / (until_s - began_s), 1.0) if until_s > began_s else 1.0

    @property
    def host_ms(self) -> float:
        """Milliseconds that the host works on a step, all stages together."""
        host = sum(span.end_s - span.begin_s for span in self._spans if span.stage in _HOST)
        return 1e3 * host / max(len({span.step_id for span in self._spans}), 1)


def check_trace(path: Path) -> None:
    """Check, before anything is measured, that a trace can be written.

    Raises:
        BenchmarkError: the path cannot be written, or matplotlib is missing for a picture.
    """
    if path.suffix.lower() not in _FORMATS:
        raise BenchmarkError(f"a trace is written as {', '.join(_FORMATS)}, not {path.name!r}")
    if not path.absolute().parent.is_dir():
        raise BenchmarkError(f"{path} cannot be written: its folder does not exist")
    if path.suffix.lower() != ".json":
        figure_class()


def write_trace(trace: StepTrace, path: Path) -> None:
    """Write trace events (chrome://tracing, Perfetto), or a picture of a few steps in the middle."""
    if path.suffix.lower() == ".json":
        path.write_bytes(orjson.dumps({"traceEvents": _events(trace.spans), "displayTimeUnit": "ms"}))
    else:
        _draw(trace, path)


def _events(spans: list[Span]) -> list[dict[str, object]]:
    """Complete events in microseconds, one lane for each stage."""
    began = min((span.begin_s for span in spans), default=0.0)
    lanes: list[dict[str, object]] = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": lane, "args": {"name": stage}}
        for lane, stage in enumerate(STAGES)
    ]
    return lanes + [
        {
            "name": f"{span.stage} {span.step_id}", "cat": span.stage, "ph": "X", "pid": 1, "tid": STAGES.index(span.stage),
            "ts": (span.begin_s - began) * 1e6, "dur": (span.end_s - span.begin_s) * 1e6,
        }
        for span in spans
    ]  # fmt: skip


def _draw(trace: StepTrace, path: Path) -> None:
    spans = trace.spans
    steps = sorted({span.step_id for span in spans})
    middle = steps[len(steps) // 2 :][:_SHOWN_STEPS]
    shown = [span for span in spans if span.step_id in middle]
    began = min((span.begin_s for span in shown), default=0.0)
    figure = figure_class()(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots()
    lanes = [stage for stage in STAGES if any(span.stage == stage for span in shown)]
    for span in shown:
        axes.barh(
            lanes.index(span.stage), (span.end_s - span.begin_s) * 1e3, left=(span.begin_s - began) * 1e3,
            color=f"C{span.step_id % 10}", edgecolor="black", linewidth=0.4,
        )  # fmt: skip
    axes.set_yticks(range(len(lanes)), lanes)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds; a color for each step")
    axes.set_title(
        f"{len(middle)} of {len(steps)} steps: the device computes {trace.device_share:.0%} of the time, the host "
        f"{trace.host_ms:.2f} ms a step"
    )
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)
