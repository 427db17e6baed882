"""Tokens sorted by expert, in whole tiles."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from asurge.ops.experts import place_tokens


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(), tokens=st.sampled_from([1, 2, 17, 40]), per_token=st.integers(1, 3), count=st.sampled_from([3, 8])
)
def test_each_token_has_a_row_of_its_own_at_each_of_its_experts(
    data: st.DataObject, tokens: int, per_token: int, count: int
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    experts = np.stack([rng.permutation(count)[:per_token] for _ in range(tokens)]).astype(np.int32)
    live = data.draw(st.none() | st.lists(st.integers(0, 16), min_size=-(-tokens // 16), max_size=-(-tokens // 16)))
    placed = place_tokens(jnp.asarray(experts), None if live is None else jnp.asarray(live, jnp.int32), count)
    real = np.ones(tokens, bool) if live is None else (np.arange(16) < np.asarray(live)[:, None]).reshape(-1)[:tokens]
    rows, owners = np.asarray(placed.rows), np.asarray(placed.tokens)
    assert len(set(rows[real].reshape(-1))) == real.sum() * per_token
    assert (rows[~real] >= len(owners)).all()
    for token in np.flatnonzero(real):
        for row, expert in zip(rows[token], experts[token], strict=True):
            assert owners[row] == token
            assert placed.experts[row // 16] == expert
            assert row % 16 < placed.live[row // 16]
    assert np.asarray(placed.live).sum() == real.sum() * per_token
