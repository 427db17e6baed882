"""Train the demo model: ``python -m tools.demo_model.train --out FOLDER`` (about an hour on two CPU cores).

The model is asurge's own decoder with dense attention in place of pages. Samples are packed whole into rows
and see only themselves. The loss counts answers, not questions. The same seed on the same Python version and
machine gives the same checkpoint.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from asurge.models.config import DecoderConfig
from asurge.models.decoder import Decoder, Layer
from asurge.models.dense import StatelessAttend
from asurge.models.weights.checkpoint import checkpoint_table
from asurge.ops.attention import Heads
from tools.demo_model.corpus import Fact, collect_facts
from tools.demo_model.samples import END, epoch, raw_question
from tools.demo_model.tokenizer import VOCAB_SIZE, save_tokenizer, train_tokenizer

CONFIG = DecoderConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=256,
    intermediate_size=640,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    max_position_embeddings=1024,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
ROW_TOKENS = 136
ROWS = 30
NUM_QUESTIONS = 300


class Batch(NamedTuple):
    """Packed samples, int32 ``[rows, tokens]``; segment 0 is padding, ``weights`` are 1 where a target counts."""

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    weights: np.ndarray


def batches(facts: Sequence[Fact], tokenizer: Tokenizer, seed: int) -> Iterator[Batch]:
    """Endless packed batches, epoch after epoch."""
    rng = random.Random(seed)
    batch, row, column, segment = _empty(), 0, 0, 1
    while True:
        for sample in epoch(facts, rng):
            prompt, answer = tokenizer.encode(sample.prompt).ids, tokenizer.encode(sample.answer).ids
            ids, size = prompt + answer, len(prompt) + len(answer) - 1
            if size > ROW_TOKENS:
                continue  # a long answer beside a tool's definition: one in ten thousand
            if column + size > ROW_TOKENS:
                row, column, segment = row + 1, 0, 1
                if row == ROWS:
                    yield batch
                    batch, row = _empty(), 0
            where = (row, slice(column, column + size))
            batch.tokens[where], batch.targets[where] = ids[:-1], ids[1:]
            batch.positions[where], batch.segments[where] = np.arange(size), segment
            batch.weights[row, column + len(prompt) - 1 : column + size] = 1
            column, segment = column + size, segment + 1


def _empty() -> Batch:
    return Batch(*(np.zeros((ROWS, ROW_TOKENS), np.int32) for _ in Batch._fields))


def loss_of(model: Decoder, batch: Batch) -> jax.Array:
    """Mean cross-entropy of the counted targets, in nats."""
    same = batch.segments[:, :, None] == batch.segments[:, None, :]
    mask = same & jnp.tril(jnp.ones((ROW_TOKENS, ROW_TOKENS), bool))

    hidden = model(jnp.asarray(batch.tokens).reshape(-1), jnp.asarray(batch.positions).reshape(-1), _AttendWithin(mask))
    losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden), batch.targets.reshape(-1))
    weights = batch.weights.reshape(-1).astype(jnp.float32)
    return jnp.sum(losses * weights) / jnp.sum(weights)


class _AttendWithin(StatelessAttend):
    """`asurge.models.decoder.Attend` over the rows of a batch, where ``mask [ROWS, ROW_TOKENS, ROW_TOKENS]`` allows it."""

    def __init__(self, mask: jax.Array) -> None:
        self._mask = mask

    def __call__(self, layer: Layer, heads: Heads) -> jax.Array:
        q, k, v = heads.split()
        # Float32, heads first, keys transposed: the forms XLA:CPU runs 2 to 5 times faster than the obvious einsum.
        groups, size = CONFIG.num_kv_heads, CONFIG.head_dim
        queries = q.astype(jnp.float32).reshape(ROWS, ROW_TOKENS, groups, -1, size)
        queries = queries.transpose(0, 2, 3, 1, 4).reshape(ROWS * groups, -1, size)
        keys = k.astype(jnp.float32).reshape(ROWS, ROW_TOKENS, groups, size).transpose(0, 2, 3, 1)
        values = v.astype(jnp.float32).reshape(ROWS, ROW_TOKENS, groups, size).transpose(0, 2, 1, 3)
        scores = queries @ keys.reshape(ROWS * groups, size, ROW_TOKENS)
        scores = scores.reshape(ROWS, -1, ROW_TOKENS, ROW_TOKENS) * size**-0.5
        weights = jax.nn.softmax(jnp.where(self._mask[:, None], scores, -1e9), axis=-1)
        out = weights.reshape(ROWS * groups, -1, ROW_TOKENS) @ values.reshape(ROWS * groups, ROW_TOKENS, size)
        out = out.reshape(ROWS, CONFIG.num_heads, ROW_TOKENS, size).transpose(0, 2, 1, 3)
        return out.astype(q.dtype).reshape(q.shape)


def make_update(
    graph: Any, optimizer: optax.GradientTransformation, dtype: jnp.dtype
) -> Callable[[Any, Any, Batch], tuple[Any, Any, jax.Array]]:
    """Run one compiled optimiser step: float32 parameters, products in ``dtype``."""

    def update(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
            return loss_of(nnx.merge(graph, cast), batch)

        value, gradients = jax.value_and_grad(loss)(params)
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state, value

    return jax.jit(update, donate_argnums=(0, 1))


def export(params: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Hugging Face Llama checkpoint in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {path: np.asarray(leaf[...].astype(jnp.bfloat16)) for path, leaf in nnx.to_flat_state(params)}
    tensors: dict[str, np.ndarray] = {}
    for path, sources in checkpoint_table(CONFIG).items():
        ends = np.cumsum([source.shape[0] for source in sources])[:-1]
        tensors |= zip((source.name for source in sources), np.split(arrays[path], ends), strict=True)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private
    save_tokenizer(tokenizer, folder)
    end = tokenizer.token_to_id(END)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": CONFIG.vocab_size,
        "hidden_size": CONFIG.hidden_size,
        "intermediate_size": CONFIG.intermediate_size,
        "num_hidden_layers": CONFIG.num_layers,
        "num_attention_heads": CONFIG.num_heads,
        "num_key_value_heads": CONFIG.num_kv_heads,
        "head_dim": CONFIG.head_dim,
        "max_position_embeddings": CONFIG.max_position_embeddings,
        "rms_norm_eps": CONFIG.rms_norm_eps,
        "rope_theta": CONFIG.rope_theta,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "eos_token_id": end,
        "pad_token_id": tokenizer.token_to_id("<|pad|>"),
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "do_sample": False}) + "\n")


def write_questions(facts: Sequence[Fact], path: Path, seed: int) -> None:
    """The questions the model is held to: a seeded sample of the facts it was trained on."""
    chosen = random.Random(seed).sample(facts, NUM_QUESTIONS)
    rows = ({"question": raw_question(fact).prompt, "name": fact.name, "answer": fact.sentence} for fact in chosen)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(out: Path, *, steps: int, seed: int, peak: float, dtype: jnp.dtype, export_every: int) -> None:
    """Train for ``steps`` of `ROWS` x `ROW_TOKENS` tokens, exporting on the way."""
    facts = collect_facts()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(facts, seed)
    write_questions(facts, out.parent / "questions.jsonl", seed)
    graph, params = nnx.split(Decoder(CONFIG, dtype=jnp.float32, rngs=nnx.Rngs(seed)))
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, min(200, steps // 10), steps, end_value=peak * 0.02)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))
    state = optimizer.init(params)
    update = make_update(graph, optimizer, dtype)
    source, began, losses = batches(facts, tokenizer, seed), time.monotonic(), []
    for step in range(1, steps + 1):
        params, state, value = update(params, state, next(source))
        losses.append(value)
        if step % 50 == 0:
            mean, elapsed = float(np.mean(jax.device_get(losses))), time.monotonic() - began
            print(
                f"step {step}/{steps}  loss {mean:.4f}  {elapsed:.0f} s  {step * ROWS * ROW_TOKENS / elapsed:.0f} tok/s",
                flush=True,
            )
            losses.clear()
        if step % export_every == 0 or step == steps:
            export(params, tokenizer, out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train asurge's demo model.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=2300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak", type=float, default=2.5e-3, help="peak learning rate")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the products")
    parser.add_argument("--export-every", type=int, default=250, help="steps between exports")
    given = parser.parse_args()
    train(
        given.out,
        steps=given.steps,
        seed=given.seed,
        peak=given.peak,
        dtype=jnp.dtype(given.dtype),
        export_every=given.export_every,
    )


if __name__ == "__main__":
    main()
