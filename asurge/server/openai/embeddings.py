"""``POST /v1/embeddings``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
import orjson
from aiohttp import web
from anyio.lowlevel import checkpoint

from asurge.engine.stream import do_all
from asurge.errors import InvalidRequestError, RequestAbortedError
from asurge.outputs import EmbeddingOutput
from asurge.server.errors import cancelled
from asurge.server.exchange import Exchange
from asurge.server.http.body import read, reply
from asurge.server.http.disconnect import while_connected
from asurge.server.openai.completions import prompts_of
from asurge.server.schema.embeddings import Embedding, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage
from asurge.server.state import Served

_NUMBERS_A_TURN = 1 << 16
"""Numbers that are written before the loop's other tasks get a turn: about a millisecond."""


async def create(request: web.Request) -> web.StreamResponse:
    """Make vectors of texts."""
    body = await read(request, EmbeddingRequest)
    with Exchange(request) as exchange:
        served = exchange.state.find(body.model)
        prompts = await exchange.prepared(lambda: prompts_of("input", body.input, exchange.state.config))
        try:
            works = [partial(_embed, exchange, body, served, prompt) for prompt in prompts]
            outputs = await while_connected(exchange.request, lambda: do_all(works))
        except RequestAbortedError as error:
            raise cancelled(exchange.state.config.drain_timeout_s) from error
        except InvalidRequestError as error:
            error.param = "input" if error.param == "prompt" else error.param
            raise
        tokens = sum(len(output.prompt_token_ids) for output in outputs)
        usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
        data = await _written(outputs, body)
        return reply(EmbeddingResponse(data=data, model=body.model or served.name, usage=usage))


async def _embed(
    exchange: Exchange, body: EmbeddingRequest, served: Served, prompt: str | list[int]
) -> EmbeddingOutput:
    """Embed an input; it is charged as soon as it is there, whatever becomes of the others."""
    (output,) = await served.engine.embed(
        [prompt],
        pooling=body.pooling or "mean",
        normalize=body.normalize is not False,
        dimensions=body.dimensions,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
        request_id=exchange.name(served),
        use_tqdm=False,
        **exchange.options(body),
    )
    exchange.charge(len(output.prompt_token_ids))
    return output


async def _written(outputs: Sequence[EmbeddingOutput], body: EmbeddingRequest) -> list[Embedding]:
    written, numbers = list[Embedding](), 0
    for index, output in enumerate(outputs):
        vector: Any = output.embedding
        if body.encoding_format == "base64":
            vector = base64.b64encode(vector.astype(np.dtype("<f4"), copy=False)).decode("ascii")
        else:  # as float32, a number has half the digits that msgspec would write
            vector = msgspec.Raw(orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY))
        written.append(Embedding(index=index, embedding=vector))
        numbers += output.embedding.size
        if numbers >= _NUMBERS_A_TURN:
            numbers = 0
            await checkpoint()
    return written
