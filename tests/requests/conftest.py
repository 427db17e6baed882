"""An engine with every extra that a request can name, and the reference it is compared with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from asurge import Engine
from tests.conftest import TINY
from tests.requests.reference import Reference


def only_even(logits: jax.Array, argument: jax.Array) -> jax.Array:
    """A logits processor: odd tokens lose ``argument``."""
    return logits - argument * (jnp.arange(logits.shape[0]) % 2)


def inverted(logits: jax.Array, argument: jax.Array) -> jax.Array:
    return logits * argument


@pytest.fixture(scope="session")
async def engine(tiny_folder: Path) -> AsyncIterator[Engine]:
    processors = {"only_even": only_even, "scale": inverted}
    async with Engine(str(tiny_folder), **TINY, logits_processors=processors) as engine:
        yield engine


@pytest.fixture(scope="session")
def reference(tiny_folder: Path) -> Reference:
    return Reference(tiny_folder)
