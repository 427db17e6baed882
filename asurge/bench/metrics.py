"""Compute metrics from the records of requests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np

from asurge.bench.records import Load, Record
from asurge.errors import ConfigError

LIMITED = ("ttft", "tpot", "e2el")
"""Latencies that a goodput limit can bound."""


@dataclasses.dataclass(frozen=True, slots=True)
class Distribution:
    """Mean, percentiles and largest of some values."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclasses.dataclass(frozen=True, slots=True)
class Metrics:
    """The figures of one load; None where there was nothing to measure.

    Attributes:
        short: requests that ended with fewer tokens than requested.
        goodput_per_s: requests a second that stayed within all limits, if there were any.
        ttft_ms: time to first token.
        tpot_ms: time per token after the first, one value a request.
        itl_ms: time between deliveries, one value a delivery after the first.
        e2el_ms: end-to-end latency of a request.
        round_ms: of a whole round.
        tokens_per_delivery: 1 where readers keep up with the engine.
    """

    completed: int
    failed: int
    short: int
    duration_s: float
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    goodput_per_s: float | None
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    e2el_ms: Distribution | None
    round_ms: Distribution | None
    tokens_per_delivery: Distribution | None


def distribution(values: Iterable[float | None], scale: float = 1.0) -> Distribution | None:
    """The summary of the values that are there, times ``scale``."""
    there = [value * scale for value in values if value is not None]
    if not there:
        return None
    p50, p90, p99 = map(float, np.percentile(there, [50, 90, 99]))
    return Distribution(mean=math.fsum(there) / len(there), p50=p50, p90=p90, p99=p99, max=max(there))


def summarize(load: Load, output_len: int, limits_ms: dict[str, float] | None = None) -> Metrics:
    """The figures of a load. Latencies and tokens are those of the requests that completed."""
    done = [record for record in load.records if record.error is None]
    seconds = max(load.duration_s, 1e-9)
    inputs, outputs = sum(r.input_tokens for r in done), sum(r.output_tokens for r in done)
    return Metrics(
        completed=len(done),
        failed=len(load.records) - len(done),
        short=sum(record.output_tokens < output_len for record in done),
        duration_s=load.duration_s,
        input_tokens=inputs,
        cached_tokens=sum(record.cached_tokens for record in done),
        output_tokens=outputs,
        requests_per_s=len(done) / seconds,
        output_tokens_per_s=outputs / seconds,
        total_tokens_per_s=(inputs + outputs) / seconds,
        goodput_per_s=sum(_keeps(r, limits_ms) for r in done) / seconds if limits_ms else None,
        ttft_ms=distribution((r.first_token_s for r in done), 1000),
        tpot_ms=distribution((r.per_token_s for r in done), 1000),
        itl_ms=distribution((gap for r in done for gap in r.gaps_s), 1000),
        e2el_ms=distribution((r.latency_s for r in done), 1000),
        round_ms=distribution((ended - began for began, ended in load.rounds_s), 1000),
        tokens_per_delivery=distribution(float(tokens) for r in done for _, tokens in r.deliveries),
    )


def parse_limits(given: Sequence[str]) -> dict[str, float]:
    """Goodput limits in milliseconds from ``ttft:500 tpot:50``.

    Raises:
        ConfigError: an entry is not of this form.
    """
    limits = {}
    for item in given:
        name, _, value = item.partition(":")
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if name not in LIMITED or not (math.isfinite(limit) and limit > 0):
            raise ConfigError(
                f"goodput limit {item!r} must be NAME:MILLISECONDS with a name of {', '.join(LIMITED)}, as in ttft:500"
            )
        limits[name] = limit
    return limits


def _keeps(record: Record, limits_ms: dict[str, float]) -> bool:
    measured_s = {"ttft": record.first_token_s, "tpot": record.per_token_s, "e2el": record.latency_s}
    return all((measured_s[name] or 0.0) * 1000 <= limit for name, limit in limits_ms.items())
