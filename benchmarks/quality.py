"""Measure what formats of weights cost in quality: ``python -m benchmarks.quality MODEL [--llama PYTHON] [--json FILE]``.

The distributions of a model's next tokens over texts that ship with Python, in the CPU kernels, against those of the same weights
in float32 in plain JAX: KL divergence, positions whose likeliest token is the same, the difference of the actual token's
log-probability, and perplexity. For a GGUF file, the reference has its weights dequantised, and ``--llama`` names a Python that
has llama-cpp-python, which is measured against it too.
"""

from __future__ import annotations

import argparse
import json
import pydoc_data.topics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from asurge.config import Kernels
from asurge.models.weights.source import resolve_checkpoint
from asurge.text import load_tokenizer
from benchmarks.int8_quality import Floats, Ids, forward, log_probabilities

TOPICS = ("assignment", "class", "async")
"""Topics of the language reference that ``help()`` shows."""

LENGTH = 256

LLAMA_JOB = """
import sys
import numpy as np
from llama_cpp import Llama
model, chunks, out = sys.argv[1:]
ids = np.load(chunks)
llama = Llama(model, n_ctx=2 * ids.shape[1], logits_all=True, verbose=False, n_batch=ids.shape[1])
logits = []
for chunk in ids:
    llama.reset()
    llama.eval(chunk.tolist())
    logits.append(np.array(llama.scores[: len(chunk)], np.float32))
np.save(out, np.stack(logits))
"""


def read_chunks(path: Path, most: int) -> Ids:
    """The texts' tokens ``[chunks, LENGTH]``."""
    tokenizer = load_tokenizer(path)
    text = "".join(pydoc_data.topics.topics[name] for name in TOPICS)
    ids = tokenizer.encode(text)
    count = min(len(ids) // LENGTH, most)
    return np.asarray(ids[: count * LENGTH], np.int32).reshape(count, LENGTH)


def logits_of(path: Path, chunks: Ids, kernels: Kernels, quantization: str | None, dtype: str = "bfloat16") -> Floats:
    """``[chunks, LENGTH, vocab]``, each chunk a text of its own."""
    run = forward(path, kernels, quantization, dtype=dtype)
    return np.stack([run(chunk).astype(np.float32) for chunk in chunks])


def llama_logits(python: str, path: Path, chunks: Ids) -> Floats:
    """Compute the distributions with llama.cpp."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "ids.npy", Path(folder) / "logits.npy"
        np.save(given, chunks)
        subprocess.run([python, "-c", LLAMA_JOB, str(path), str(given), str(found)], check=True)
        logits: Floats = np.load(found)
        return logits


def compare(name: str, reference: Floats, logits: Floats, chunks: Ids) -> dict[str, Any]:
    """Divergence of distributions from the reference's. Padding of the vocabulary is left out."""
    size = min(reference.shape[-1], logits.shape[-1])
    divergence, agree, apart, losses = [], [], [], []
    for wanted, found, ids in zip(reference, logits, chunks, strict=True):
        p, q = (log_probabilities(x[:, :size].astype(np.float64)) for x in (wanted, found))
        divergence.append((np.exp(p) * (p - q)).sum(axis=-1))
        agree.append(p.argmax(axis=-1) == q.argmax(axis=-1))
        at = np.arange(len(ids) - 1)
        apart.append(np.abs(p[at, ids[1:]] - q[at, ids[1:]]))
        losses.append(-q[at, ids[1:]])
    return {
        "weights": name,
        "kl": float(np.mean(divergence)),
        "same_argmax": float(np.mean(agree)),
        "median_difference": float(np.median(apart)),
        "perplexity": float(np.exp(np.mean(losses))),
    }


def report(records: Sequence[dict[str, Any]], tokens: int) -> Table:
    columns = ("weights", "KL divergence", "same likeliest", "median difference", "perplexity")
    table = Table(*columns, title=f"Against float32, {tokens} tokens of Python's documentation")
    for one in records:
        figures = (
            f"{one['kl']:.5f}",
            f"{one['same_argmax']:.2%}",
            f"{one['median_difference']:.4f}",
            f"{one['perplexity']:.3f}",
        )
        table.add_row(one["weights"], *figures)
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file, or a checkpoint folder")
    parser.add_argument("--llama", metavar="PYTHON", help="a Python that has llama-cpp-python")
    parser.add_argument("--chunks", type=int, default=8, help=f"of {LENGTH} tokens")
    parser.add_argument("--json", type=Path, help="keep the figures")
    given = parser.parse_args(arguments)
    path = resolve_checkpoint(given.model)
    chunks = read_chunks(path, given.chunks)
    reference = logits_of(path, chunks, "xla", None, "float32")
    variants = {"as stored": None, "int8": "int8", "int4": "int4"}
    records = [compare("float32", reference, reference, chunks)]
    records.append(compare("bf16, plain JAX", reference, logits_of(path, chunks, "xla", None), chunks))
    for name, quantization in variants.items():
        records.append(compare(name, reference, logits_of(path, chunks, "native", quantization), chunks))
    if given.llama:
        records.append(compare("llama.cpp", reference, llama_logits(given.llama, path, chunks), chunks))
    Console().print(report(records, chunks.size))
    if given.json:
        given.json.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
