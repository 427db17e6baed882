"""From the device to the host."""

from __future__ import annotations

import jax


def begin_fetch(array: jax.Array) -> None:
    """Have an array copied to the host before anybody waits for it. On CPU it is there anyway, and to ask for it takes a tenth
    of a dispatch."""
    if jax.default_backend() != "cpu":
        array.copy_to_host_async()
