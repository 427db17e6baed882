"""Measure what logits options cost: time per token of many streams, against streams without options.

``python -m benchmarks.shaped --model S`` runs all kinds in turns, in one process, and compares each with the plain kind
of the same temperature in the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from asurge import Engine, GuidedDecodingParams, SamplingParams
from asurge.bench.machine import describe_machine

RESULTS = Path(__file__).parent / "results"
SCHEMA = {
    "type": "array",
    "minItems": 500,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    },
}
JSON = GuidedDecodingParams(json=SCHEMA)
REGEX = GuidedDecodingParams(regex="[a-zA-Z ,.]{4000,5000}")
EXTRAS: dict[str, dict[str, object]] = {
    "plain": {},
    "JSON schema": {"guided_decoding": JSON},
    "regex": {"guided_decoding": REGEX},
    "penalties": {"frequency_penalty": 0.2, "repetition_penalty": 1.1},
    "logit bias": {"logit_bias": {11: 2.0, 13: -2.0}},
    "logprobs": {"logprobs": 5},
}


async def time_per_token(engine: Engine, params: SamplingParams, streams: int) -> float:
    """Milliseconds between a stream's first token and its last, per token; the mean of all streams."""
    times: list[float] = []

    async def one(index: int) -> None:
        first = None
        async for output in engine.stream([5 + index, *range(100, 228)], params):
            first = first or (time.perf_counter(), output.num_generated_tokens)
            if output.finished and output.num_generated_tokens > first[1]:
                times.append((time.perf_counter() - first[0]) / (output.num_generated_tokens - first[1]))

    await asyncio.gather(*(one(index) for index in range(streams)))
    return statistics.mean(times) * 1e3


async def measure(model: str, streams: int, tokens: int, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    async with Engine(model, max_num_seqs=max(streams, 64), max_model_len=1024, silent_mode=True) as engine:
        for attempt in range(rounds + 1):
            for temperature in (0.0, 0.7):
                for name, extra in EXTRAS.items():
                    params = SamplingParams(
                        max_tokens=tokens, temperature=temperature, top_k=40, ignore_eos=True, **extra
                    )  # type: ignore[arg-type]
                    value = await time_per_token(engine, params, streams)
                    if attempt:  # the first round warms up
                        found.setdefault(f"{name}, {'greedy' if temperature == 0 else 'random'}", []).append(value)
    return found


def report(found: dict[str, list[float]], console: Console) -> list[dict[str, float | str]]:
    table = Table("kind", "ms a token", "of plain", title="Time per token, medians")
    rows: list[dict[str, float | str]] = []
    for kind, values in found.items():
        plain = found[f"plain, {kind.rsplit(', ', 1)[1]}"]
        ratio = statistics.median(value / base for value, base in zip(values, plain, strict=True))
        rows.append({"kind": kind, "ms_per_token": statistics.median(values), "of_plain": ratio})
        table.add_row(kind, f"{statistics.median(values):.2f}", f"{ratio:.3f}")
    console.print(table)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--store", help="write benchmarks/results/NAME.json", metavar="NAME")
    options = parser.parse_args(arguments)
    found = asyncio.run(measure(options.model, options.streams, options.tokens, options.rounds))
    rows = report(found, Console(file=sys.stdout))
    if options.store:
        result = {"machine": describe_machine(), "streams": options.streams, "tokens": options.tokens, "kinds": rows}
        (RESULTS / f"{options.store}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
