"""``/v1/embeddings``: what comes in and what goes out."""

from __future__ import annotations

from typing import Literal

import msgspec

from asurge.plan import Pooling
from asurge.server.schema.sampling import EngineRequest


class EmbeddingRequest(EngineRequest, kw_only=True):
    """Texts or token ids to make vectors of."""

    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    # Beyond OpenAI's.
    pooling: Pooling | None = None
    normalize: bool | None = None
    truncate_prompt_tokens: int | None = None


class Embedding(msgspec.Struct, kw_only=True):
    """An embedding: its numbers, or base64 of them as little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    """Usage of an embedding request, in tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(msgspec.Struct, kw_only=True):
    """Embeddings, in the order of their inputs."""

    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"
