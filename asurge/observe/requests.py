"""Metrics of an engine's requests: histograms for Prometheus, and recent values to look at."""

from __future__ import annotations

from collections import deque

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram

from asurge.outputs import FinishReason
from asurge.pipeline import Generation

_TTFT = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)  # fmt: skip
_BETWEEN = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)  # fmt: skip
_WHOLE = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)  # fmt: skip
_CHOICES = (1, 2, 5, 10, 20)
_STEP = (1, *(1 << power for power in range(3, 15)))
LABELS = ("model_name", "engine")
RECENT = 4096
"""Number of values that percentiles are taken over."""


class Recent:
    """The last values of a metric, and their percentiles."""

    def __init__(self, most: int = RECENT) -> None:
        self._values: deque[float] = deque(maxlen=most)

    def add(self, value: float) -> None:
        self._values.append(value)

    def percentile(self, percent: float) -> float | None:
        """None before the first value."""
        return float(np.percentile(self._values, percent)) if self._values else None


class RequestFigures:
    """`asurge.pipeline.RequestObserver` of one engine. The histograms are those that dashboards of vLLM know.

    Attributes:
        ttft_s, itl_s, e2el_s: recent times to the first token, between tokens, and of whole requests, in seconds.
    """

    def __init__(self, histograms: Histograms, model: str) -> None:
        self.ttft_s, self.itl_s, self.e2el_s = Recent(), Recent(), Recent()
        labels = (model, "0")
        self._itl = histograms.itl.labels(*labels)
        self._ttft, self._e2el = histograms.ttft.labels(*labels), histograms.e2el.labels(*labels)
        self._tpot = histograms.tpot.labels(*labels)
        self._prompt, self._generated = histograms.prompt.labels(*labels), histograms.generated.labels(*labels)
        self._completions, self._longest = histograms.completions.labels(*labels), histograms.longest.labels(*labels)
        self._max_tokens, self._step = histograms.max_tokens.labels(*labels), histograms.step.labels(*labels)
        self._queue, self._prefill = histograms.queue.labels(*labels), histograms.prefill.labels(*labels)
        self._decode, self._inference = histograms.decode.labels(*labels), histograms.inference.labels(*labels)
        self._refused = histograms.refused.labels(*labels, "queue_full")
        self._ended = {
            reason: histograms.ended.labels(*labels, reason) for reason in ("stop", "length", "abort", "error")
        }

    def gained(self, tokens: int, since_s: float | None) -> None:
        if since_s is not None:
            each = since_s / tokens
            for _ in range(tokens):
                self._itl.observe(each)
                self.itl_s.add(each)

    def ended(self, generation: Generation, reason: FinishReason) -> None:
        self._ended[reason].inc()
        self._prompt.observe(len(generation.prompt.token_ids))
        counts = [len(completion.token_ids) for completion in generation.completions]
        self._generated.observe(sum(counts))
        self._completions.observe(len(generation.completions))
        if generation.max_tokens:
            self._max_tokens.observe(generation.max_tokens)
            self._longest.observe(max(counts))
        self._time(generation)
        first_s, last_s = generation.first_token_s, generation.last_token_s
        whole = last_s - generation.arrival_s
        if whole > 0:  # something arrived: tokens, or an embedding
            self._e2el.observe(whole)
            self.e2el_s.add(whole)
        if first_s is None:
            return
        ttft = first_s - generation.arrival_s
        self._ttft.observe(ttft)
        self.ttft_s.add(ttft)
        behind = max(counts) - 1
        if behind > 0:
            self._tpot.observe((last_s - first_s) / behind)

    def _time(self, generation: Generation) -> None:
        """Observe the phases of a request's time: queue, prefill and decode."""
        started_s, first_s, last_s = generation.started_s, generation.first_token_s, generation.last_token_s
        if started_s is None:
            return
        self._queue.observe(started_s - generation.arrival_s)
        if first_s is not None:
            self._prefill.observe(first_s - started_s)
            self._decode.observe(last_s - first_s)
            self._inference.observe(last_s - started_s)

    def refused(self) -> None:
        self._refused.inc()

    def stepped(self, tokens: int) -> None:
        self._step.observe(tokens)


class Histograms:
    """The metrics that all engines of a registry share."""

    def __init__(self, registry: CollectorRegistry, max_model_len: int) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"asurge_{name}", text, LABELS, buckets=buckets, registry=registry)

        lengths = one_two_five(max_model_len)
        self.ttft = histogram("time_to_first_token_seconds", "Time to first token, from arrival.", _TTFT)
        self.itl = histogram("inter_token_latency_seconds", "Time between two tokens of one sequence.", _BETWEEN)
        self.tpot = histogram(
            "request_time_per_output_token_seconds",
            "Mean time per output token of a request, after the first.",
            _BETWEEN,
        )
        self.e2el = histogram(
            "e2e_request_latency_seconds", "End-to-end latency of a request, from arrival to its last token.", _WHOLE
        )
        self.prompt = histogram("request_prompt_tokens", "Prompt tokens of a request.", lengths)
        self.generated = histogram("request_generation_tokens", "Generated tokens of a request.", lengths)
        self.completions = histogram("request_params_n", "Completions of a request (parameter n).", _CHOICES)
        self.max_tokens = histogram(
            "request_params_max_tokens", "Maximum tokens of a completion (parameter max_tokens).", lengths
        )
        self.longest = histogram(
            "request_max_num_generation_tokens", "Generated tokens of a request's longest completion.", lengths
        )
        self.queue = histogram(
            "request_queue_time_seconds", "Time in the waiting queue, from arrival to the first step.", _WHOLE
        )
        self.prefill = histogram(
            "request_prefill_time_seconds", "Prefill time, from the first step to the first token.", _WHOLE
        )
        self.decode = histogram("request_decode_time_seconds", "Decode time, from the first token to the last.", _WHOLE)
        self.inference = histogram(
            "request_inference_time_seconds", "Inference time, from the first step to the last token.", _WHOLE
        )
        self.step = histogram("iteration_tokens_total", "Tokens that a step computes.", _STEP)
        self.refused = Counter(
            "asurge_admission_rejections", "Requests refused, by reason.", (*LABELS, "reason"), registry=registry
        )
        self.ended = Counter(
            "asurge_request_success",
            "Finished requests, by finish reason.",
            (*LABELS, "finished_reason"),
            registry=registry,
        )


def one_two_five(most: int) -> tuple[float, ...]:
    """Return bucket bounds 1, 2, 5, 10, ... up to ``most``."""
    series = [digit * 10**power for power in range(10) for digit in (1, 2, 5)]
    return tuple(float(one) for one in series if one <= most) or (1.0,)
