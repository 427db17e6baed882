"""Draws against float64 reference distributions, and independence from company."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asurge.ops.sampling import sample

VOCAB, PADDED, DRAWS = 300, 384, 8192
draw = jax.jit(sample, static_argnames="vocab_size")


def logits(seed: int = 0, spread: float = 2.0) -> np.ndarray:
    row = np.random.default_rng(seed).normal(size=PADDED) * spread
    row[VOCAB:] = 50.0  # padding that would win if it were looked at
    return row.astype(np.float32)


def draws(
    row: np.ndarray, temperature: float, top_k: int, top_p: float, count: int = DRAWS, seed: int = 7
) -> np.ndarray:
    """One row drawn at many positions."""
    return np.asarray(
        draw(
            jnp.broadcast_to(row, (count, PADDED)),
            jnp.full(count, temperature, jnp.float32),
            jnp.full(count, top_k, jnp.int32),
            jnp.full(count, top_p, jnp.float32),
            jnp.full(count, seed, jnp.uint32),
            jnp.arange(count, dtype=jnp.int32),
            vocab_size=VOCAB,
        )
    )


def reference(row: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """The distribution in float64: temperature, then top-k, then top-p over the rest."""
    scaled = row[:VOCAB].astype(np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")
    kept = order[: top_k or VOCAB]
    weights = np.exp(scaled[kept] - scaled.max())
    weights /= weights.sum()
    kept = kept[: 1 + int((np.cumsum(weights)[:-1] < top_p).sum())] if top_p < 1 else kept
    probabilities = np.zeros(VOCAB)
    probabilities[kept] = np.exp(scaled[kept] - scaled.max())
    return probabilities / probabilities.sum()


def chi_square(observed: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    """Pearson's statistic with rare outcomes pooled, and its degrees of freedom."""
    expected = probabilities * len(observed)
    counts = np.bincount(observed, minlength=VOCAB).astype(float)
    rare = expected < 8
    expected = np.append(expected[~rare], expected[rare].sum())
    counts = np.append(counts[~rare], counts[rare].sum())
    used = expected > 0
    return float(((counts[used] - expected[used]) ** 2 / expected[used]).sum()), int(used.sum()) - 1


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0), (0.5, 0, 1.0), (3.0, 0, 1.0),  # nothing cut: hierarchical sampling
        (1.0, 1, 1.0), (1.0, 5, 1.0), (2.0, 64, 1.0),  # inside the candidates
        (2.0, 65, 1.0), (3.0, 200, 1.0),  # top-k beyond them: bisection
        (1.0, 0, 0.3), (0.7, 0, 0.9), (3.0, 0, 0.95),  # a narrow and a wide nucleus
        (1.0, 10, 0.8), (3.0, 150, 0.9), (1.0, 0, 1e-6),
    ],
)  # fmt: skip
def test_draws_follow_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    row = logits()
    probabilities = reference(row, temperature, top_k, top_p)
    observed = draws(row, temperature, top_k, top_p)
    assert observed.max() < VOCAB
    assert probabilities[np.unique(observed)].min() > 0, "a token outside the kept set was drawn"
    statistic, freedom = chi_square(observed, probabilities)
    # Five standard deviations of the chi-square distribution: the seed is fixed, so this is no lottery.
    assert statistic < freedom + 5 * np.sqrt(2 * max(freedom, 1))


def test_greedy_takes_the_lowest_of_equals_and_no_padding() -> None:
    row = logits()
    row[[17, 170]] = row[:VOCAB].max() + 1
    assert set(draws(row, 0.0, 0, 1.0, count=3)) == {17}


def test_a_row_draws_the_same_in_any_company() -> None:
    """Alone, among greedy rows, among rows that take the wide path, in another place: the same token."""
    rng = np.random.default_rng(1)
    settings = [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 5, 1.0), (1.5, 0, 0.8), (2.0, 100, 0.9), (1.0, 0, 0.2)]
    rows = np.stack([logits(seed) for seed in range(len(settings))])

    def run(order: list[int]) -> dict[int, int]:
        picked = [settings[at] for at in order]
        tokens = draw(
            jnp.asarray(rows[order]),
            jnp.asarray([one[0] for one in picked], jnp.float32),
            jnp.asarray([one[1] for one in picked], jnp.int32),
            jnp.asarray([one[2] for one in picked], jnp.float32),
            jnp.asarray([100 + at for at in order], jnp.uint32),
            jnp.asarray([5 * at for at in order], jnp.int32),
            vocab_size=VOCAB,
        )
        return dict(zip(order, np.asarray(tokens).tolist(), strict=True))

    together = run(list(range(len(settings))))
    assert together[0] == rows[0, :VOCAB].argmax()
    for _ in range(4):
        some = rng.permutation(len(settings))[: rng.integers(1, 6)].tolist()
        assert run(some).items() <= together.items()


def test_seeds_and_positions_change_the_draw() -> None:
    row = logits(spread=0.1)
    assert len(set(draws(row, 1.0, 0, 1.0, count=64).tolist())) > 32
    assert (draws(row, 1.0, 0, 1.0, count=64, seed=1) != draws(row, 1.0, 0, 1.0, count=64, seed=2)).any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_logits_still_give_a_token(temperature: float, value: float) -> None:
    row = np.full(PADDED, value, np.float32)
    tokens = draws(row, temperature, 0, 0.9, count=16)
    assert ((tokens >= 0) & (tokens < VOCAB)).all()
