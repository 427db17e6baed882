"""Which attention backend serves a shape."""

from __future__ import annotations

import functools
import logging
from typing import Literal

from asurge.errors import ConfigError
from asurge.ops.attention.gpu import GpuAttention
from asurge.ops.attention.interface import AttentionBackend, AttentionShape
from asurge.ops.attention.native import NativeAttention
from asurge.ops.attention.tpu import TpuAttention
from asurge.ops.attention.xla import XlaAttention

Kernels = Literal["auto", "native", "pallas", "xla"]

_BACKENDS: dict[str, tuple[str, type[NativeAttention] | type[GpuAttention] | type[TpuAttention]]] = {
    "cpu": ("native", NativeAttention),
    "gpu": ("pallas", GpuAttention),
    "tpu": ("pallas", TpuAttention),
}
"""Accelerators' kernels by platform: their name, and the backend."""

_log = logging.getLogger("asurge")


def choose_attention(shape: AttentionShape, kernels: Kernels, platform: str) -> tuple[AttentionBackend, str | None]:
    """A backend, and why it is plain XLA although a kernel was wanted (None: it is what was wanted).

    Args:
        shape: what it is to serve.
        kernels: ``"auto"`` takes the platform's own, where they can serve the shape.
        platform: that of the device.

    Raises:
        ConfigError: the kernels asked for by name cannot serve the shape, or belong to another platform.
    """
    if kernels == "xla":
        return XlaAttention(shape), None
    name, backend = _BACKENDS.get(platform, (None, None))
    if backend is None:
        reason: str | None = f"there is no kernel for {platform}"
    elif kernels not in ("auto", name):
        reason = f"those kernels are not for {platform}"
    else:
        reason = backend.unable(shape)
    if backend is not None and reason is None:
        return backend(shape), None
    assert reason is not None
    if kernels != "auto":
        raise ConfigError(f"kernels={kernels!r} cannot serve this model: {reason}; use kernels='auto' or 'xla'")
    _warn(reason)
    return XlaAttention(shape), reason


@functools.cache
def _warn(reason: str) -> None:
    """Once for each reason in a process, however many engines it starts."""
    _log.warning("attention runs in plain XLA: %s", reason)
