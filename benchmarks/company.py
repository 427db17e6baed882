"""Measure how often a text depends on its batch: ``python -m benchmarks.company [--model FOLDER] [--texts N] [--json FILE]``.

Each text is written alone, then all of them at once, with a seed for each and greedily, in each dtype and by each kind of kernels; what
is counted is texts that come out otherwise. The CPU kernels compute each row in the same order whatever the others are. XLA has a
program for each number of rows, and each sums its products in its own order: a bit less or more, which bfloat16 rounds to
another number now and then, and a choice between two tokens as good as each other falls the other way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from asurge import Engine, RequestOutput, SamplingParams

COMPANY = 16
"""Texts at once."""


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


async def differing(engine: Engine, prompts: list[list[int]], length: int, *, temperature: float) -> tuple[int, int]:
    """Texts that the batch changes, and tokens that are alike before that, in all."""
    params = [
        SamplingParams(max_tokens=length, temperature=temperature, seed=at, ignore_eos=True)
        for at in range(len(prompts))
    ]
    alone = [await engine.generate([one], how, use_tqdm=False) for one, how in zip(prompts, params, strict=True)]
    together = await engine.generate(prompts, params, use_tqdm=False)
    pairs = list(zip(tokens([one for (one,) in alone]), tokens(together), strict=True))
    alike = sum(next((at for at, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), length) for pair in pairs)
    return sum(a != b for a, b in pairs), alike


async def measure(model: str, texts: int, length: int, combinations: list[tuple[str, str]]) -> list[dict[str, Any]]:
    rows = []
    rng = random.Random(1)
    for dtype, kernels in combinations:
        async with Engine(model, dtype=dtype, kernels=kernels, max_num_seqs=COMPANY, silent_mode=True) as engine:
            vocabulary = engine.tokenizer.vocab_size
            prompts = [
                [rng.randrange(vocabulary // 8, vocabulary // 2) for _ in range(rng.randrange(4, 90))]
                for _ in range(texts)
            ]
            for name, temperature in (("seeded", 1.0), ("greedy", 0.0)):
                changed, alike = await differing(engine, prompts, length, temperature=temperature)
                rows.append(
                    dict(dtype=dtype, kernels=kernels, decode_steps=name, texts=texts, changed=changed, alike=alike)
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--kernels", nargs="+", default=["native", "xla"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    # The CPU kernels take bfloat16 only.
    combinations = [
        (dtype, kind) for kind in given.kernels for dtype in given.dtypes if (kind, dtype) != ("native", "float32")
    ]
    rows = asyncio.run(measure(given.model, given.texts, given.length, combinations))
    table = Table(
        "dtype",
        "kernels",
        "samples",
        "texts",
        "changed",
        "tokens alike before",
        title="Texts that depend on their batch",
    )
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
