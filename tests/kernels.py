"""Helpers for tests of the CPU kernels, and of models that run in them."""

from __future__ import annotations

from typing import Any

import pytest

from asurge.ops import native

SIZES: dict[str, Any] = dict(hidden_size=64, intermediate_size=128, head_dim=32)
"""The smallest that the kernels take, of a checkpoint."""

needs_kernels = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
