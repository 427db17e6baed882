"""An LLM inference engine that lives in your event loop."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from asurge.config import CacheConfig, EngineConfig, SchedulerConfig
    from asurge.engine import Engine
    from asurge.engine.stream import TokenStream
    from asurge.outputs import CompletionOutput, EmbeddingOutput, Logprob, RequestOutput
    from asurge.params import SamplingParams
    from asurge.structured import GuidedDecodingParams, StructuredOutputsParams

_HOMES = {
    "CacheConfig": "asurge.config",
    "CompletionOutput": "asurge.outputs",
    "EmbeddingOutput": "asurge.outputs",
    "Engine": "asurge.engine",
    "EngineConfig": "asurge.config",
    "GuidedDecodingParams": "asurge.structured",
    "Logprob": "asurge.outputs",
    "RequestOutput": "asurge.outputs",
    "SamplingParams": "asurge.params",
    "SchedulerConfig": "asurge.config",
    "StructuredOutputsParams": "asurge.structured",
    "TokenStream": "asurge.engine.stream",
}

__all__ = [
    "CacheConfig",
    "CompletionOutput",
    "EmbeddingOutput",
    "Engine",
    "EngineConfig",
    "GuidedDecodingParams",
    "Logprob",
    "RequestOutput",
    "SamplingParams",
    "SchedulerConfig",
    "StructuredOutputsParams",
    "TokenStream",
    "__version__",
]


def __getattr__(name: str) -> Any:  # any public object
    """Import on first use: ``import asurge`` alone must not pay for JAX."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'asurge' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
