"""What 8 bits cost in quality: ``python -m benchmarks.int8_quality [--random FOLDER] [--json FILE]``.

Perplexity of the demo model over the answers to its questions, asked as plain text, in bfloat16 and in int8; and how near
the two's distributions are. It knows these answers by heart, in the form it learnt: so they are also asked for in another
one, a space where it expects a line break, which leaves it as uncertain as a model is of a text it has not seen. ``--random`` adds a checkpoint with random weights (`benchmarks.checkpoints`): nothing there
was learnt, so only the cosine of the logits says something. Runs whole texts, each padded to one length, in the kernels
that ``--kernels`` names.
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

from asurge.demo import CHECKPOINT, QUESTIONS
from asurge.demo.samples import END
from asurge.models import Decoder, DenseAttend, convert, load_model
from asurge.text import load_tokenizer

RANDOM_TEXTS, RANDOM_LENGTH = 4, 128
FORMS = {"demo, as learnt": f"\n{{}}{END}", "demo, another form": " {}"}
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


def forward(folder: Path, kernels: str, quantization: str | None) -> Callable[[Ids], Floats]:
    """Logits ``[tokens, vocab_size]`` of one text."""
    model = load_model(folder, dtype="bfloat16", progress=False)
    convert(model, kernels=kernels, quantization=quantization)
    graph, state = nnx.split(model)
    size = model.config.vocab_size

    @jax.jit
    def run(state: Any, tokens: jax.Array) -> jax.Array:
        module: Decoder = nnx.merge(graph, state)
        attend = DenseAttend(module.config)
        return module.logits(module(tokens, jnp.arange(tokens.shape[0]), attend))[:, :size]

    return lambda tokens: np.asarray(run(state, tokens))


def log_probabilities(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cosines(one: Floats, other: Floats) -> Floats:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    result: Floats = (one * other).sum(axis=1) / norms
    return result


def demo(kernels: str, form: str) -> dict[str, float]:
    """Over the tokens of the answers only, written as ``form``: the questions are all alike."""
    tokenizer = load_tokenizer(CHECKPOINT)
    rows = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    texts = []
    for row in rows:
        question = tokenizer.encode(row["question"])
        texts.append((len(question), question + tokenizer.encode(form.format(row["answer"]), add_special_tokens=False)))
    length = max(len(ids) for _, ids in texts)
    runs = {name: forward(CHECKPOINT, kernels, name) for name in (None, "int8")}
    losses: dict[str | None, list[Floats]] = {name: [] for name in runs}
    right: dict[str | None, int] = dict.fromkeys(runs, 0)
    near, divergence, same = [], [], []
    for begin, ids in texts:
        tokens = np.zeros(length, np.int32)
        tokens[: len(ids)] = ids
        logits = {name: run(tokens)[begin - 1 : len(ids) - 1] for name, run in runs.items()}
        logs = {name: log_probabilities(part) for name, part in logits.items()}
        targets = np.asarray(ids[begin:])
        for name, log in logs.items():
            losses[name].append(-log[np.arange(len(targets)), targets])
            right[name] += int((log.argmax(axis=1) == targets).sum())
        near.append(cosines(logits[None], logits["int8"]))
        divergence.append((np.exp(logs[None]) * (logs[None] - logs["int8"])).sum(axis=1))
        same.append(logs[None].argmax(axis=1) == logs["int8"].argmax(axis=1))
    total = sum(len(part) for part in losses[None])
    return {
        "tokens": total,
        "perplexity_bf16": float(np.exp(np.concatenate(losses[None]).mean())),
        "perplexity_int8": float(np.exp(np.concatenate(losses["int8"]).mean())),
        "right_bf16": right[None] / total,
        "right_int8": right["int8"] / total,
        "same_token": float(np.concatenate(same).mean()),
        "divergence_nats": float(np.concatenate(divergence).mean()),
        "cosine_mean": float(np.concatenate(near).mean()),
        "cosine_least": float(np.concatenate(near).min()),
    }


def random_weights(folder: Path, kernels: str) -> dict[str, float]:
    """Random tokens through random weights."""
    runs = [forward(folder, kernels, name) for name in (None, "int8")]
    rng = np.random.default_rng(0)
    near, same = [], []
    for _ in range(RANDOM_TEXTS):
        tokens = rng.integers(3, 2000, RANDOM_LENGTH).astype(np.int32)
        one, other = (run(tokens) for run in runs)
        near.append(cosines(one, other))
        same.append(one.argmax(axis=1) == other.argmax(axis=1))
    return {
        "tokens": RANDOM_TEXTS * RANDOM_LENGTH,
        "same_token": float(np.concatenate(same).mean()),
        "cosine_mean": float(np.concatenate(near).mean()),
        "cosine_least": float(np.concatenate(near).min()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What 8 bits cost in quality.")
    parser.add_argument("--random", type=Path, metavar="FOLDER", help="also a checkpoint with random weights")
    parser.add_argument("--kernels", choices=("auto", "native", "xla"), default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    results = {name: demo(options.kernels, form) for name, form in FORMS.items()}
    if options.random is not None:
        results[options.random.name] = random_weights(options.random, options.kernels)
    for name, figures in results.items():
        print(name)
        for figure, value in figures.items():
            print(f"  {figure:<18}{value:>12,.5g}")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
