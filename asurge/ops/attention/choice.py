"""Which attention backend serves a shape."""

from __future__ import annotations

import logging
from typing import Literal

from asurge.errors import ConfigError
from asurge.ops.attention.interface import AttentionBackend, AttentionShape
from asurge.ops.attention.native import NativeAttention
from asurge.ops.attention.xla import XlaAttention

Kernels = Literal["auto", "native", "xla"]

_log = logging.getLogger("asurge")


def choose_attention(shape: AttentionShape, kernels: Kernels, platform: str) -> tuple[AttentionBackend, str | None]:
    """A backend, and why it is plain XLA although a kernel was wanted (None: it is what was wanted).

    Raises:
        ConfigError: the kernels asked for by name cannot serve the shape.
    """
    if kernels == "xla":
        return XlaAttention(shape), None
    reason = NativeAttention.unable(shape) if platform == "cpu" else f"there is no kernel for {platform} yet"
    if reason is None:
        return NativeAttention(shape), None
    if kernels != "auto":
        raise ConfigError(f"kernels={kernels!r} cannot serve this model: {reason}; use kernels='auto' or 'xla'")
    _log.warning("attention runs in plain XLA: %s", reason)
    return XlaAttention(shape), reason
