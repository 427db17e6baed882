"""Prompts to vectors: what `Engine.embed` does with each."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from asurge.engine.admission import Admission
from asurge.engine.prompts import Prompt
from asurge.engine.stream import do_all
from asurge.errors import RequestAbortedError
from asurge.outputs import EmbeddingOutput
from asurge.params import EmbeddingParams, RequestOptions
from asurge.pipeline import Generation


async def embed_all(
    admission: Admission,
    prompts: Sequence[Prompt],
    request_ids: Sequence[str | None],
    params: EmbeddingParams,
    options: RequestOptions,
    on_done: Callable[[], object],
    at_most: int,
) -> list[EmbeddingOutput]:
    """Embed all prompts together, at most ``at_most`` at a time; returns the embeddings in order.

    Raises:
        AsurgeError: the error of the first that was refused, ended or failed. The others are aborted.
    """
    admission.check()
    works = [
        partial(_embed, admission, name or f"embd-{secrets.token_hex(8)}", prompt, params, options)
        for name, prompt in zip(request_ids, prompts, strict=True)
    ]
    return await do_all(works, on_done, at_most)


async def _embed(
    admission: Admission, request_id: str, prompt: Prompt, params: EmbeddingParams, options: RequestOptions
) -> EmbeddingOutput:
    generation = await admission.submit_embedding(request_id, prompt, params, options)
    try:
        await generation.wait_output()
    finally:
        if not generation.finished:
            admission.cancel(generation)
    return _output(generation, params)


def _output(generation: Generation, params: EmbeddingParams) -> EmbeddingOutput:
    prompt, (completion,) = generation.prompt, generation.completions
    if completion.embedding is None:
        raise RequestAbortedError(f"request {generation.request_id!r} was aborted before its prompt was embedded")
    return EmbeddingOutput(
        generation.request_id,
        prompt.text,
        prompt.token_ids,
        shaped(completion.embedding, params),
        num_cached_tokens=completion.num_cached_tokens,
        num_truncated_tokens=prompt.num_truncated_tokens,
        num_dropped_messages=prompt.num_dropped_messages,
        processing_time=generation.last_token_s - generation.arrival_s,
    )


def shaped(pooled: npt.NDArray[np.float32], params: EmbeddingParams) -> npt.NDArray[np.float32]:
    """Pooled hidden states ``[hidden]`` as an embedding ``[dimensions]``: cut first, so that what is left has length 1."""
    kept = pooled[: params.dimensions].copy()
    length = np.linalg.norm(kept)
    return kept / length if params.normalize and length > 0 else kept
