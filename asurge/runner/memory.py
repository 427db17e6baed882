"""Memory budget of the KV pages."""

from __future__ import annotations

import dataclasses
import os

import jax

from asurge.config import EngineConfig
from asurge.errors import ConfigError
from asurge.plan import RunnerLimits

CPU_KV_LIMIT_BYTES = 1 << 30


def kv_budget_bytes(config: EngineConfig, device: jax.Device) -> int:
    """Bytes for KV pages: as configured, or what the platform leaves beside the weights already loaded."""
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes
    if device.platform == "cpu":
        return min(CPU_KV_LIMIT_BYTES, _available_host_bytes() // 4)
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        raise ConfigError(f"device {device} does not report its memory: set kv_cache_bytes")
    return int(stats["bytes_limit"] * config.hbm_utilization) - int(stats.get("bytes_in_use", 0))


def num_pages(limits: RunnerLimits, budget_bytes: int, page_bytes: int) -> int:
    """Pages in the pool, the null page included: no more than all slots at full length can use.

    Args:
        limits: all but the pages.

    Raises:
        ConfigError: the budget does not hold one sequence of ``max_model_len``.
    """
    per_sequence = limits.pages_held(limits.columns(limits.max_model_len))
    affordable = budget_bytes // page_bytes
    if affordable < per_sequence + 1:
        longest = dataclasses.replace(limits, num_pages=max(affordable, 1)).longest
        raise ConfigError(
            f"the KV budget of {budget_bytes / 2**20:.0f} MiB holds a sequence of {longest} tokens, fewer than "
            f"max_model_len={limits.max_model_len}: raise kv_cache_bytes or hbm_utilization, or lower max_model_len"
        )
    return min(affordable, limits.max_num_seqs * per_sequence + 1)


def _available_host_bytes() -> int:
    """Memory the host can give; a sensible guess where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 4 << 30
