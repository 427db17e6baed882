"""Measure what int8 costs in quality: ``python -m benchmarks.int8_quality [--random FOLDER] [--json FILE]``.

Perplexity of the demo model over the answers to its questions, asked as plain text, in bfloat16, with weights and activations
in int8, with keys and values in int8, and with all of them; and how close the distributions are to bfloat16's. It knows these
answers by heart, in the form it learnt: so they are also asked for in another, with a space where it expects a line break, which
leaves it as uncertain as a model is of a text it has not seen. ``--random`` adds a checkpoint with random weights
(`benchmarks.checkpoints`): nothing there was learnt, so only the cosine of the logits means anything. Runs whole texts, each
padded to one length, in the kernels that ``--kernels`` names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from rich.console import Console
from rich.table import Table

from asurge.config import Kernels
from asurge.demo import CHECKPOINT, QUESTIONS
from asurge.models import Decoder, DenseAttend, convert, open_model
from asurge.models.decoder import Layer
from asurge.ops.attention import Heads
from asurge.ops.linear import quantize_int8
from asurge.text import load_tokenizer
from tools.demo_model.samples import END

RANDOM_TEXTS, RANDOM_LENGTH = 4, 128
FORMS = {"demo, as learnt": f"\n{{}}{END}", "demo, another form": " {}"}
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


class Int8Pages(DenseAttend):
    """Keys and values through 8 bits, as pages keep them."""

    def __call__(self, layer: Layer, heads: Heads) -> jax.Array:
        q, k, v = heads.split()
        through = jnp.concatenate((q, *(_through_int8(x) for x in (k, v))), axis=1)
        upright = jnp.ones_like(heads.cos), jnp.zeros_like(heads.sin)
        return super().__call__(layer, Heads(through, heads.num_heads, heads.num_kv_heads, *upright))


def _through_int8(x: jax.Array) -> jax.Array:
    codes, scale = quantize_int8(x)
    return (codes * scale[..., None]).astype(x.dtype)


VARIANTS: dict[str, tuple[str | None, type[DenseAttend]]] = {
    "bf16": (None, DenseAttend),
    "int8": ("int8", DenseAttend),
    "bf16, int8 pages": (None, Int8Pages),
    "int8, int8 pages": ("int8", Int8Pages),
}
"""The others are compared with the first."""


def forward(
    path: Path,
    kernels: Kernels,
    quantization: str | None,
    attend: type[DenseAttend] = DenseAttend,
    dtype: str = "bfloat16",
) -> Callable[[Ids], Floats]:
    """Logits ``[tokens, vocab_size]`` of one text."""
    model = open_model(path, dtype=dtype, progress=False)
    convert(model, kernels=kernels, quantization=quantization)
    graph, state = nnx.split(model)
    size = model.config.vocab_size

    @jax.jit
    def run(state: Any, tokens: jax.Array) -> jax.Array:
        module: Decoder = nnx.merge(graph, state)
        return module.logits(module(tokens, jnp.arange(tokens.shape[0]), attend(module.config)))[:, :size]

    return lambda tokens: np.asarray(run(state, tokens))


def log_probabilities(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cosines(one: Floats, other: Floats) -> Floats:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    result: Floats = (one * other).sum(axis=1) / norms
    return result


def demo(kernels: str, form: str) -> dict[str, dict[str, float]]:
    """Over the tokens of the answers only, written as ``form``: the questions are all alike."""
    tokenizer = load_tokenizer(CHECKPOINT)
    rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    texts = []
    for row in rows:
        question = tokenizer.encode(row["question"])
        texts.append((len(question), question + tokenizer.encode(form.format(row["answer"]), add_special_tokens=False)))
    length = max(len(ids) for _, ids in texts)
    plain: list[Floats] = []
    found = {}
    for name, how in VARIANTS.items():
        run = forward(CHECKPOINT, kernels, *how)
        losses, right, logits = [], 0, []
        for begin, ids in texts:
            tokens = np.zeros(length, np.int32)
            tokens[: len(ids)] = ids
            logits.append(run(tokens)[begin - 1 : len(ids) - 1])
            logs, targets = log_probabilities(logits[-1]), np.asarray(ids[begin:])
            losses.append(-logs[np.arange(len(targets)), targets])
            right += int((logs.argmax(axis=1) == targets).sum())
        plain = plain or logits
        every = np.concatenate(losses)
        figures = {"tokens": every.size, "perplexity": float(np.exp(every.mean())), "right": right / every.size}
        found[name] = figures | distance(plain, logits)
    return found


def distance(plain: list[Floats], others: list[Floats]) -> dict[str, float]:
    """Divergence of a variant's distributions over texts from the plain model's."""
    near, divergence, same = [], [], []
    for one, other in zip(plain, others, strict=True):
        logs, other_logs = log_probabilities(one), log_probabilities(other)
        near.append(cosines(one, other))
        divergence.append((np.exp(logs) * (logs - other_logs)).sum(axis=1))
        same.append(logs.argmax(axis=1) == other_logs.argmax(axis=1))
    return {
        "same_token": float(np.concatenate(same).mean()),
        "divergence_nats": float(np.concatenate(divergence).mean()),
        "cosine_mean": float(np.concatenate(near).mean()),
        "cosine_least": float(np.concatenate(near).min()),
    }


def random_weights(folder: Path, kernels: str) -> dict[str, dict[str, float]]:
    """Random tokens through random weights."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 2000, RANDOM_LENGTH).astype(np.int32) for _ in range(RANDOM_TEXTS)]
    plain: list[Floats] = []
    found = {}
    for name, how in VARIANTS.items():
        run = forward(folder, kernels, *how)
        logits = [run(tokens) for tokens in texts]
        plain = plain or logits
        found[name] = {"tokens": RANDOM_TEXTS * RANDOM_LENGTH} | distance(plain, logits)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What 8 bits cost in quality.")
    parser.add_argument("--random", type=Path, metavar="FOLDER", help="also a checkpoint with random weights")
    parser.add_argument("--kernels", choices=("auto", "native", "xla"), default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    results = {name: demo(options.kernels, form) for name, form in FORMS.items()}
    if options.random is not None:
        results[options.random.name] = random_weights(options.random, options.kernels)
    console = Console()
    for text, variants in results.items():
        table = Table("", *variants, title=text)
        for figure in next(iter(variants.values())):
            table.add_row(figure, *(f"{figures[figure]:,.5g}" for figures in variants.values()))
        console.print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
