"""Mixtures of experts against one token and one expert at a time, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asurge.ops.experts import mix_grouped, mix_looped, route

HIDDEN, INNER = 12, 8


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("form", [mix_grouped, mix_looped])
@pytest.mark.parametrize(("tokens", "experts", "per_token"), [(1, 4, 1), (7, 4, 2), (33, 6, 3), (5, 3, 3)])
def test_tokens_are_routed_to_their_experts(form: object, tokens: int, experts: int, per_token: int) -> None:
    rng = np.random.default_rng(tokens)
    x, logits = rng.normal(size=(tokens, HIDDEN)), rng.normal(size=(tokens, experts)) * 2
    gate_up, down = rng.normal(size=(experts, 2 * INNER, HIDDEN)), rng.normal(size=(experts, HIDDEN, INNER))
    weights, chosen = route(jnp.asarray(logits, jnp.float32), per_token, normalize=True)
    out = form(*(jnp.asarray(one, jnp.float32) for one in (x, weights)), chosen, *(jnp.asarray(one, jnp.float32) for one in (gate_up, down)), "silu")  # type: ignore[operator]  # fmt: skip
    expected = np.zeros_like(x)
    for token in range(tokens):
        best = np.argsort(-logits[token])[:per_token]
        share = np.exp(logits[token][best]) / np.exp(logits[token][best]).sum()
        for expert, part in zip(best, share, strict=True):
            inner = gate_up[expert] @ x[token]
            expected[token] += part * (down[expert] @ (silu(inner[:INNER]) * inner[INNER:]))
    np.testing.assert_allclose(np.asarray(out), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("form", [mix_grouped, mix_looped])
@pytest.mark.parametrize(("tokens", "experts", "per_token"), [(1, 4, 1), (33, 6, 2), (5, 3, 3)])
def test_weights_may_scale_the_experts_input(form: object, tokens: int, experts: int, per_token: int) -> None:
    rng = np.random.default_rng(tokens)
    x, logits = rng.normal(size=(tokens, HIDDEN)), rng.normal(size=(tokens, experts)) * 2
    gate_up, down = rng.normal(size=(experts, 2 * INNER, HIDDEN)), rng.normal(size=(experts, HIDDEN, INNER))
    weights, chosen = route(jnp.asarray(logits, jnp.float32), per_token, normalize=False, sigmoid=True)
    out = form(*(jnp.asarray(one, jnp.float32) for one in (x, weights)), chosen, *(jnp.asarray(one, jnp.float32) for one in (gate_up, down)), "silu", weigh_input=True)  # type: ignore[operator]  # fmt: skip
    expected = np.zeros_like(x)
    for token in range(tokens):
        for expert in np.argsort(-logits[token])[:per_token]:
            inner = gate_up[expert] @ (x[token] / (1 + np.exp(-logits[token, expert])))
            expected[token] += down[expert] @ (silu(inner[:INNER]) * inner[INNER:])
    np.testing.assert_allclose(np.asarray(out), expected, rtol=2e-4, atol=2e-4)


def test_equal_sigmoids_do_not_change_the_routing() -> None:
    weights, chosen = route(jnp.asarray([[30.0, 20.0, 40.0, -1.0]]), 1, normalize=False, sigmoid=True)
    assert chosen.tolist() == [[2]]
    assert weights.tolist() == [[1.0]]


def test_weights_are_a_softmax_over_all_experts_unless_normalised() -> None:
    logits = jnp.asarray([[0.0, 1.0, 2.0, 3.0]])
    raw, chosen = route(logits, 2, normalize=False)
    assert chosen.tolist() == [[3, 2]]
    np.testing.assert_allclose(raw, jax.nn.softmax(logits)[:, [3, 2]], rtol=1e-6)
    assert float(route(logits, 2, normalize=True)[0].sum()) == pytest.approx(1.0)
