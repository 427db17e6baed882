"""The choice of kernels: what the setting ``kernels`` means on each platform."""

from __future__ import annotations

import functools
import logging

from asurge.config import Kernels
from asurge.errors import ConfigError
from asurge.ops import native
from asurge.ops.attention import (
    AttentionBackend,
    AttentionShape,
    GpuAttention,
    NativeAttention,
    TpuAttention,
    XlaAttention,
)
from asurge.ops.native import sampling
from asurge.ops.sampling import SampleFunction, sample

ATTENTION_BACKENDS: tuple[type[AttentionBackend], ...] = (NativeAttention, GpuAttention, TpuAttention)
"""The preferred first, where several serve a platform. Plain XLA serves what none of them can."""

_log = logging.getLogger("asurge")


def choose_attention(shape: AttentionShape, kernels: Kernels, platform: str) -> tuple[AttentionBackend, str | None]:
    """The attention backend, and why it is plain XLA although a kernel was wanted (None: it is what was wanted).

    Args:
        shape: what it is to serve.
        kernels: ``"auto"`` takes the platform's own, where they can serve the shape.
        platform: that of the device.

    Raises:
        ConfigError: the kernels asked for by name cannot serve the shape, or belong to another platform.
    """
    if kernels == "xla":
        return XlaAttention(shape), None
    here = [backend for backend in ATTENTION_BACKENDS if platform in backend.platforms]
    candidates = [backend for backend in here if kernels in ("auto", backend.kernels)]
    reasons = []
    for backend in candidates:
        reason = backend.unable(shape)
        if reason is None:
            return backend(shape), None
        reasons.append(reason)
    if not here:
        reasons = [f"there is no kernel for {platform}"]
    elif not candidates:
        reasons = [f"those kernels are not for {platform}"]
    return XlaAttention(shape), fall_back("attention", kernels, "; ".join(reasons))


def choose_sampler(kernels: Kernels, platform: str) -> SampleFunction:
    """The CPU kernel that samples, where it is wanted and available; `asurge.ops.sampling.sample` elsewhere."""
    wanted = platform == "cpu" and kernels in ("auto", "native")
    return sampling.sample if wanted and native.unavailable() is None else sample


def wants_native_products(kernels: Kernels, platform: str) -> bool:
    """Whether matrix products are to run in the CPU kernels. On accelerators, XLA's own are wanted."""
    return kernels == "native" or (kernels == "auto" and platform == "cpu")


def fall_back(what: str, kernels: Kernels, reason: str) -> str:
    """Warn that something runs in plain XLA although kernels were wanted, and return why.

    Raises:
        ConfigError: the kernels were asked for by name.
    """
    if kernels != "auto":
        raise ConfigError(f"kernels={kernels!r} cannot serve this model: {reason}; use kernels='auto' or 'xla'")
    _warn(what, reason)
    return reason


@functools.cache
def _warn(what: str, reason: str) -> None:
    """Warn once for each reason in a process, however many engines it starts."""
    verb = "run" if what.endswith("s") else "runs"
    _log.warning("%s %s in plain XLA: %s", what, verb, reason)
