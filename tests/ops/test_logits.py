"""LogitsShaping of logits against float64 references, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asurge.ops.logits import IN_PROMPT, allow, count, logprobs, penalize, record, typical
from asurge.ops.sampling import few_at_a_time
from tests.ops.distribution import VOCAB, chi_square, sample_many


def rows(seed: int, number: int = 5, spread: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(number, VOCAB)) * spread).astype(np.float32)


def typical_set(row: np.ndarray, temperature: float, mass: float) -> np.ndarray:
    """The kept tokens by Meister et al., in float64."""
    scaled = row.astype(np.float64) / temperature
    surprise = np.logaddexp.reduce(scaled) - scaled
    likely = np.exp(-surprise)
    order = np.argsort(np.abs(surprise - (likely * surprise).sum()), kind="stable")
    return order[: 1 + int((np.cumsum(likely[order])[:-1] < mass).sum())]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("mass", [0.05, 0.4, 0.9])
def test_the_typical_set_is_kept(temperature: float, mass: float) -> None:
    logits = rows(1)
    kept = np.asarray(typical(jnp.asarray(logits), jnp.full(5, temperature), jnp.full(5, mass)))
    for row, left in zip(logits, kept, strict=True):
        assert set(np.flatnonzero(left > -np.inf)) == set(typical_set(row, temperature, mass))


def test_typical_p_samples_follow_the_distribution() -> None:
    row = rows(2)[0]
    cut = np.asarray(typical(jnp.asarray(row)[None], jnp.ones(1), jnp.full(1, 0.6)))[0]
    padded = np.full(384, 50.0, np.float32)
    padded[:VOCAB] = cut
    kept = typical_set(row, 1.0, 0.6)
    probabilities = np.zeros(VOCAB)
    probabilities[kept] = np.exp(row[kept].astype(np.float64))
    statistic, freedom = chi_square(sample_many(padded, 1.0, 0, 1.0), probabilities / probabilities.sum())
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


def test_typical_p_leaves_greedy_and_neutral_rows_alone() -> None:
    logits = rows(3)
    same = typical(jnp.asarray(logits), jnp.asarray([0.0, 0, 1, 1, 2]), jnp.asarray([0.1, 1, 1, 1, 1]))
    assert (np.asarray(same) == logits).all()


def test_typical_p_ignores_masked_tokens() -> None:
    logits = rows(4)
    logits[:, 50:] = -np.inf
    kept = np.asarray(typical(jnp.asarray(logits), jnp.ones(5), jnp.full(5, 0.5)))
    for row, left in zip(logits, kept, strict=True):
        assert set(np.flatnonzero(left > -np.inf)) == set(typical_set(row[:50], 1.0, 0.5))


@given(st.sets(st.integers(0, VOCAB - 1)))
@settings(max_examples=30, deadline=None)
def test_a_mask_allows_the_tokens_of_its_bits(allowed: set[int]) -> None:
    words = np.zeros((1, -(-VOCAB // 32)), np.uint32)
    for token in allowed:
        words[0, token // 32] |= np.uint32(1 << token % 32)
    left = np.asarray(allow(jnp.asarray(rows(5, 1)), jnp.asarray(words)))
    assert set(np.flatnonzero(left[0] > -np.inf)) == allowed


@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40), st.integers(0, 40), st.integers(1, 13))
@settings(max_examples=30, deadline=None)
def test_recorded_and_sampled_tokens_count_the_same(tokens: list[int], prompt: int, chunk: int) -> None:
    """A history in chunks, then the rest sampled one after another, is the history all at once."""
    prompt = min(prompt, len(tokens))
    expected = np.bincount(tokens[prompt:], minlength=VOCAB)
    expected[tokens[:prompt]] |= IN_PROMPT
    middle = prompt + (len(tokens) - prompt) // 2
    seen = jnp.asarray(np.random.default_rng(0).integers(0, 9, (3, VOCAB)), jnp.uint16)
    for begin in range(0, middle, chunk):
        part = np.full(chunk, VOCAB, np.int32)
        known = tokens[begin : min(begin + chunk, middle)]
        part[: len(known)] = known
        inside = min(max(prompt - begin, 0), len(known))
        seen = record(seen, jnp.int32(1), jnp.asarray(part), jnp.int32(inside), jnp.asarray(begin == 0))
    if middle == 0:
        seen = seen.at[1].set(0)
    for token in tokens[middle:]:
        seen = count(seen, jnp.asarray([1]), jnp.asarray([token]))
    assert np.asarray(seen)[1].tolist() == expected.tolist()


def test_neutral_penalties_change_nothing() -> None:
    logits = rows(6)
    seen = jnp.asarray(np.random.default_rng(0).integers(0, 2**16, (5, VOCAB)), jnp.uint16)
    assert (np.asarray(penalize(jnp.asarray(logits), seen, jnp.ones(5), jnp.zeros(5), jnp.zeros(5))) == logits).all()


@pytest.mark.parametrize("vocab", [3, VOCAB, 20_000])
def test_logprobs_equal_the_reference(vocab: int) -> None:
    logits = (np.random.default_rng(7).normal(size=(4, vocab)) * 3).astype(np.float32)
    tokens = np.random.default_rng(8).integers(0, vocab, 4).astype(np.int32)
    told = logprobs(jnp.asarray(logits), jnp.asarray(tokens), 20)
    expected = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64), axis=1)[:, None]
    order = np.argsort(-expected, axis=1, kind="stable")[:, :20]
    likeliest = min(vocab, 20)
    assert (np.asarray(told.ids)[:, :likeliest] == order).all()
    np.testing.assert_allclose(
        np.asarray(told.values)[:, :likeliest], np.take_along_axis(expected, order, 1), atol=1e-4
    )
    assert (np.asarray(told.values)[:, likeliest:] == -np.inf).all()
    np.testing.assert_allclose(told.chosen, expected[np.arange(4), tokens], atol=1e-4)
    assert np.asarray(told.rank).tolist() == [
        1 + (row > row[token]).sum() for row, token in zip(expected, tokens, strict=True)
    ]


@pytest.mark.parametrize("number", [1, 8, 9, 40])
def test_a_few_rows_at_a_time_is_all_at_once(number: int) -> None:
    values, other = jnp.arange(number * 3.0).reshape(number, 3), jnp.arange(number)

    def both(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        return a * b[:, None], b + 1

    for few, whole in zip(few_at_a_time(both, values, other), both(values, other), strict=True):
        assert (np.asarray(few) == np.asarray(whole)).all()


@pytest.mark.parametrize("alive", [[], [3], [0, 17, 39], range(40)])
def test_padding_rows_do_not_change_other_rows(alive: Sequence[int]) -> None:
    values = jnp.arange(120.0).reshape(40, 3).at[20:24].set(jnp.nan)
    live = jnp.zeros(40, bool).at[jnp.asarray(list(alive), int)].set(True)

    def total(rows: jax.Array) -> jax.Array:
        return rows.sum(axis=1)

    few = few_at_a_time(total, values, live=live)
    np.testing.assert_array_equal(np.asarray(few)[list(alive)], np.asarray(total(values))[list(alive)])


@pytest.mark.parametrize(
    ("temperature", "mass"), [(1e-9, 0.9), (1e-30, 0.9), (1.0, 1e-40), (1e-9, 1e-46), (100.0, 1e-38)]
)
def test_the_typical_set_is_never_empty_and_holds_no_masked_token(temperature: float, mass: float) -> None:
    row = np.random.default_rng(3).normal(size=(1, 300)).astype(np.float32)
    row[0, :290] = -np.inf
    cut = np.asarray(typical(jnp.asarray(row), jnp.full(1, temperature), jnp.full(1, mass)))[0]
    kept = np.flatnonzero(cut > -np.inf)
    assert kept.size
    assert kept.min() >= 290
