"""Samples against float64 reference distributions, and independence from the batch."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from asurge.ops import native
from asurge.ops.kernels import choose_sampler
from asurge.ops.native import sampling as kernel
from asurge.ops.sampling import BLOCK, CANDIDATES, SampleFunction, SamplingInputs, sample
from tests.kernels import needs_kernels
from tests.ops.distribution import PADDED, VOCAB, chi_square, sample_many, sample_plain

Setting = tuple[float, int, float] | tuple[float, int, float, float]
"""Temperature, top-k, top-p, and min-p where it is used."""

PROGRAMS = (jax.extend.core.ClosedJaxpr, jax.extend.core.Jaxpr)


sample_by_kernel = jax.jit(kernel.sample, static_argnames="vocab_size")


@pytest.fixture(params=["plain JAX", pytest.param("kernel", marks=needs_kernels)])
def sampler(request: pytest.FixtureRequest) -> SampleFunction:
    return sample_plain if request.param == "plain JAX" else sample_by_kernel


def logits(seed: int = 0, spread: float = 2.0) -> np.ndarray:
    row = np.random.default_rng(seed).normal(size=PADDED) * spread
    row[VOCAB:] = 50.0  # padding that would win if it were looked at
    return row.astype(np.float32)


def reference(row: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float = 0.0) -> np.ndarray:
    """The distribution in float64: temperature, then top-k, then top-p over the rest, then min-p."""
    size = VOCAB if len(row) == PADDED else len(row)
    scaled = row[:size].astype(np.float64) / temperature
    order = np.argsort(-scaled, kind="stable")
    kept = order[: top_k or size]
    weights = np.exp(scaled[kept] - scaled.max())
    weights /= weights.sum()
    kept = kept[: 1 + int((np.cumsum(weights)[:-1] < top_p).sum())] if top_p < 1 else kept
    kept = kept[np.exp(scaled[kept] - scaled.max()) >= min_p]
    probabilities = np.zeros(size)
    probabilities[kept] = np.exp(scaled[kept] - scaled.max())
    return probabilities / probabilities.sum()


@pytest.mark.parametrize(
    "setting",
    [
        (1.0, 0, 1.0), (0.5, 0, 1.0), (3.0, 0, 1.0),  # nothing cut: hierarchical sampling
        (1.0, 1, 1.0), (1.0, 5, 1.0), (2.0, 64, 1.0),  # inside the candidates
        (2.0, 65, 1.0), (3.0, 200, 1.0),  # top-k beyond them: bisection
        (1.0, 0, 0.3), (0.7, 0, 0.9), (3.0, 0, 0.95),  # a narrow and a wide nucleus
        (1.0, 10, 0.8), (3.0, 150, 0.9), (1.0, 0, 1e-6),
        (1.0, 0, 1.0, 0.1), (3.0, 0, 1.0, 0.02), (1.0, 0, 1.0, 1.0),  # min-p inside the candidates, beyond, and all
        (3.0, 200, 1.0, 0.02), (3.0, 0, 0.9, 0.05), (3.0, 0, 0.5, 0.2), (3.0, 100, 0.9, 0.3), (1.0, 8, 0.9, 0.2),
    ],
)  # fmt: skip
def test_samples_follow_the_distribution(setting: Setting, sampler: SampleFunction) -> None:
    row = logits()
    probabilities = reference(row, *setting)
    observed = sample_many(row, *setting, sampler=sampler)
    assert observed.max() < VOCAB
    assert probabilities[np.unique(observed)].min() > 0, "a token outside the kept set was sampled"
    statistic, freedom = chi_square(observed, probabilities)
    # Five standard deviations of the chi-square distribution: the seed is fixed, so this is no lottery.
    assert statistic < freedom + 5 * np.sqrt(2 * max(freedom, 1))


def test_greedy_takes_the_lowest_id_of_ties_and_no_padding(sampler: SampleFunction) -> None:
    row = logits()
    row[[17, 170]] = row[:VOCAB].max() + 1
    assert set(sample_many(row, 0.0, 0, 1.0, count=256, sampler=sampler)) == {17}
    assert set(sample_many(row, 1.0, 1, 1.0, count=256, sampler=sampler)) == {17}


@pytest.mark.parametrize("top_k", [3, CANDIDATES])
def test_a_small_top_k_keeps_the_first_of_ties(top_k: int, sampler: SampleFunction) -> None:
    assert set(sample_many(np.zeros(PADDED, np.float32), 1.0, top_k, 1.0, sampler=sampler)) == set(range(top_k))


def large(
    sampler: SampleFunction, row: npt.NDArray[np.float32], top_k: int, top_p: float, count: int = 1024
) -> npt.NDArray[np.int32]:
    """Draws over a vocabulary of more blocks than candidates."""
    settings = (jnp.ones(count), jnp.full(count, top_k, jnp.int32), jnp.full(count, top_p), jnp.zeros(count))
    seeds, positions = jnp.zeros(count, jnp.uint32), jnp.arange(count, dtype=jnp.int32)
    rows = jnp.broadcast_to(row, (count, len(row)))
    return np.asarray(sampler(rows, SamplingInputs(*settings, seeds, positions), vocab_size=len(row)))


@pytest.mark.parametrize(("top_k", "top_p"), [(40, 1.0), (CANDIDATES, 0.9), (0, 0.3), (0, 0.9), (100, 1.0), (0, 1.0)])
def test_candidates_come_from_a_large_vocabulary_in_two_stages(
    top_k: int, top_p: float, sampler: SampleFunction
) -> None:
    row = (np.random.default_rng(3).normal(size=80 * BLOCK) * 2.5).astype(np.float32)
    probabilities = reference(row, 1.0, top_k, top_p)
    observed = large(sampler, row, top_k, top_p)
    assert probabilities[np.unique(observed)].min() > 0, "a token outside the kept set was sampled"
    statistic, freedom = chi_square(observed, probabilities)
    assert statistic < freedom + 5 * np.sqrt(2 * max(freedom, 1))


def test_ties_over_many_blocks_keep_the_first_as_candidate(sampler: SampleFunction) -> None:
    row = np.zeros(80 * BLOCK, np.float32)
    first, best = 3 * BLOCK + 10, 70 * BLOCK + 5
    row[[first, best - 1, best]] = 4.0, 4.0, 4.5
    assert set(large(sampler, row, 2, 1.0)) == {first, best}


@pytest.mark.parametrize("setting", [(1.0, 0, 1.0), (1.0, 70, 1.0), (1.0, 0, 0.9)])
def test_ties_are_equally_likely(setting: Setting, sampler: SampleFunction) -> None:
    """Nothing tells equal logits apart, so a wide cut keeps all of them."""
    statistic, freedom = chi_square(
        sample_many(np.zeros(PADDED, np.float32), *setting, sampler=sampler), np.full(VOCAB, 1 / VOCAB)
    )
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("setting", [(0.0, 0, 1.0), (5.0, 0, 1.0), (5.0, 50, 1.0), (5.0, 200, 0.99), (5.0, 0, 0.99)])
def test_masked_tokens_are_never_sampled(setting: Setting, sampler: SampleFunction) -> None:
    row = logits()
    row[: VOCAB - 20] = -np.inf
    row[VOCAB - 20] = np.nan
    observed = sample_many(row, *setting, count=256, sampler=sampler)
    assert observed.min() > VOCAB - 20
    assert observed.max() < VOCAB


@pytest.mark.parametrize("vocab_size", [1, 2, 50, BLOCK, BLOCK + 1])
@pytest.mark.parametrize(
    "setting", [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 60, 1.0), (1.0, 0, 0.5), (1.0, 2**31 - 1, 0.9)]
)
def test_small_vocabularies(vocab_size: int, setting: tuple[float, int, float], sampler: SampleFunction) -> None:
    count = 256
    temperature, top_k, top_p = setting
    row = np.where(np.arange(PADDED) < vocab_size, 0.0, 99.0).astype(np.float32)
    tokens = sampler(
        jnp.broadcast_to(row, (count, PADDED)),
        SamplingInputs(
            temperature=jnp.full(count, temperature),
            top_k=jnp.full(count, top_k),
            top_p=jnp.full(count, top_p),
            min_p=jnp.zeros(count),
            seed=jnp.zeros(count, jnp.uint32),
            position=jnp.arange(count),
        ),
        vocab_size=vocab_size,
    )
    assert 0 <= tokens.min() <= tokens.max() < vocab_size


@pytest.mark.parametrize("temperature", [1e-30, 1e-3])
def test_a_tiny_temperature_is_greedy(temperature: float, sampler: SampleFunction) -> None:
    row = logits(spread=100.0)
    assert set(sample_many(row, temperature, 0, 1.0, count=256, sampler=sampler)) == {row[:VOCAB].argmax()}


def test_the_largest_seeds_and_negative_top_k_are_taken(sampler: SampleFunction) -> None:
    row = logits()
    largest = sample_many(row, 1.0, 0, 1.0, count=256, seed=2**32 - 1, sampler=sampler)
    assert (largest != sample_many(row, 1.0, 0, 1.0, count=256, sampler=sampler)).any()
    assert (largest == sample_many(row, 1.0, -1, 1.0, count=256, seed=2**32 - 1, sampler=sampler)).all()


def test_sampling_neither_sorts_nor_makes_noise_over_the_vocabulary() -> None:
    """Both would cost more than the model's own step: 150 and 27 ms for 32 x 49152."""
    vocab = 128 * 1024
    shapes = [jax.ShapeDtypeStruct((4, vocab), jnp.float32)]
    shapes += [jax.ShapeDtypeStruct((4,), kind) for kind in ("float32", "int32", *["float32"] * 2, "uint32", "int32")]
    jaxpr = jax.make_jaxpr(lambda rows, *inputs: sample(rows, SamplingInputs(*inputs), vocab_size=vocab))(*shapes)
    costly = [one for one in equations(jaxpr.jaxpr) if one.primitive.name in ("sort", "top_k", "random_bits", "cumsum")]
    assert {"top_k", "random_bits"} <= {one.primitive.name for one in costly}
    sizes = [variable.aval.size for one in costly for variable in (*one.invars, *one.outvars)]
    assert max(sizes) <= 4 * CANDIDATES * BLOCK


def equations(jaxpr: jax.extend.core.Jaxpr) -> Iterator[jax.extend.core.JaxprEqn]:
    """All equations of a program, those of its branches and loops included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda x: isinstance(x, PROGRAMS)):
            if isinstance(inner, jax.extend.core.ClosedJaxpr):
                yield from equations(inner.jaxpr)
            elif isinstance(inner, jax.extend.core.Jaxpr):
                yield from equations(inner)


def each(
    sampler: SampleFunction, rows: npt.NDArray[np.float32], settings: list[Setting], order: list[int]
) -> dict[int, int]:
    """Draw some rows, in some order: by row, its token. A row's seed and position depend on the row alone."""
    picked = [(*settings[at], 0.0)[:4] for at in order]
    tokens = sampler(
        jnp.asarray(rows[order]),
        SamplingInputs(
            temperature=jnp.asarray([one[0] for one in picked], jnp.float32),
            top_k=jnp.asarray([one[1] for one in picked], jnp.int32),
            top_p=jnp.asarray([one[2] for one in picked], jnp.float32),
            min_p=jnp.asarray([one[3] for one in picked], jnp.float32),
            seed=jnp.asarray([100 + at for at in order], jnp.uint32),
            position=jnp.asarray([5 * at for at in order], jnp.int32),
        ),
        vocab_size=VOCAB,
    )
    return dict(zip(order, np.asarray(tokens).tolist(), strict=True))


def test_a_row_samples_the_same_in_any_batch(sampler: SampleFunction) -> None:
    """Alone, among greedy rows, among rows that take the wide path, in another place: the same token."""
    rng = np.random.default_rng(1)
    settings = [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 5, 1.0), (1.5, 0, 0.8), (2.0, 100, 0.9), (1.0, 0, 0.2)] * 3
    settings += [(1.0, 0, 1.0, 0.3), (3.0, 0, 1.0, 0.02)]
    rows = np.stack([logits(seed) for seed in range(len(settings))])
    together = each(sampler, rows, settings, list(range(len(settings))))
    for greedy in (0, 6, 12):
        assert together[greedy] == rows[greedy, :VOCAB].argmax()
    for size in (1, 1, 1, 1, 1, 1, 5, 5, 5, 17):
        some = rng.permutation(len(settings))[:size].tolist()
        assert each(sampler, rows, settings, some).items() <= together.items()


def test_a_threshold_does_not_depend_on_the_number_of_rows(sampler: SampleFunction) -> None:
    """The search runs in a part of the rows when few need it."""
    count = 40
    rows = np.stack([logits(seed) for seed in range(count)])
    wide = (3.0, 0, 0.5)
    all_wide = each(sampler, rows, [wide] * count, list(range(count)))
    for other in ((0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 5, 1.0)):
        for places in ([3, 8, 9, 20, 39], [5, 17, 18, 19, 20, 21]):
            settings = [wide if at in places else other for at in range(count)]
            found = each(sampler, rows, settings, list(range(count)))
            assert {at: found[at] for at in places}.items() <= all_wide.items()


def test_seeds_and_positions_change_the_sample(sampler: SampleFunction) -> None:
    row = logits(spread=0.1)
    assert len(set(sample_many(row, 1.0, 0, 1.0, count=256, sampler=sampler).tolist())) > 32
    assert (
        sample_many(row, 1.0, 0, 1.0, count=256, seed=1, sampler=sampler)
        != sample_many(row, 1.0, 0, 1.0, count=256, seed=2, sampler=sampler)
    ).any()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_logits_still_give_a_token(temperature: float, value: float, sampler: SampleFunction) -> None:
    row = np.full(PADDED, value, np.float32)
    tokens = sample_many(row, temperature, 0, 0.9, count=256, sampler=sampler)
    assert ((tokens >= 0) & (tokens < VOCAB)).all()


@needs_kernels
@pytest.mark.parametrize("vocab_size", [1, 300, 5000, 20_000])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_the_kernel_samples_the_tokens_of_plain_jax(vocab_size: int, spread: float) -> None:
    """The noise is the same; tokens may differ only where two are closer than the rounding of a sum."""
    rng, count = np.random.default_rng(vocab_size), 192
    rows = (rng.normal(size=(count, vocab_size)) * spread).astype(np.float32)
    inputs = (
        rng.choice([0.0, 0.7, 1.0, 1.5], count).astype(np.float32),
        rng.choice([0, 1, 40, 64, 65, 300], count).astype(np.int32),
        rng.choice([0.3, 0.9, 0.99, 1.0], count).astype(np.float32),
        rng.choice([0.0, 0.01, 0.3], count).astype(np.float32),
        rng.integers(2**32, size=count, dtype=np.uint32),
        rng.integers(2**20, size=count, dtype=np.int32),
    )
    plain = np.asarray(sample_plain(rows, SamplingInputs(*inputs), vocab_size=vocab_size))
    assert (plain != np.asarray(sample_by_kernel(rows, SamplingInputs(*inputs), vocab_size=vocab_size))).sum() <= 1


@needs_kernels
def test_the_kernel_leaves_out_rows_that_are_not_live() -> None:
    count = 24
    rows = np.stack([logits(seed) for seed in range(count)])
    inputs = (
        np.ones(count, np.float32),
        np.zeros(count, np.int32),
        np.ones(count, np.float32),
        np.zeros(count, np.float32),
    )
    inputs += (np.arange(count, dtype=np.uint32), np.arange(count, dtype=np.int32))
    live = np.arange(count) % 3 == 0
    every, some = (
        np.asarray(sample_by_kernel(rows, SamplingInputs(*inputs), vocab_size=VOCAB, live=which))
        for which in (None, live)
    )
    assert (some == np.where(live, every, 0)).all()


@needs_kernels
@pytest.mark.parametrize(
    ("wrong", "message"), [({"vocab_size": PADDED + 1}, "vocabulary"), ({"seed": 3}, "wrong size")]
)
def test_the_kernel_refuses_operands_of_wrong_size(wrong: dict[str, int], message: str) -> None:
    rows, sizes = 2, {"vocab_size": VOCAB, "seed": 2} | wrong
    some = np.ones(rows, np.float32)
    with pytest.raises(Exception, match=message):
        kernel.sample(
            jnp.zeros((rows, PADDED)),
            SamplingInputs(some, some, some, some, jnp.zeros(sizes["seed"]), some),
            vocab_size=sizes["vocab_size"],
        ).block_until_ready()


def test_the_sampler_is_selected_by_platform() -> None:
    by_kernel = sample if native.unavailable() else kernel.sample
    assert choose_sampler("auto", "cpu") is choose_sampler("native", "cpu") is by_kernel
    assert choose_sampler("xla", "cpu") is choose_sampler("auto", "gpu") is sample
