"""All routes but the admin's, with the types of their requests and responses.

The application and its OpenAPI document are made from this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from asurge.server.anthropic import messages
from asurge.server.keys import Meter
from asurge.server.openai import chat, completions, embeddings, models, responses
from asurge.server.schema.chat import ChatCompletion, ChatCompletionRequest
from asurge.server.schema.completions import Completion, CompletionRequest
from asurge.server.schema.embeddings import EmbeddingRequest, EmbeddingResponse
from asurge.server.schema.messages import (
    CountMessagesRequest,
    CountMessagesResponse,
    MessagesRequest,
    MessagesResponse,
)
from asurge.server.schema.models import (
    CountTokensRequest,
    CountTokensResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    Model,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
)
from asurge.server.schema.responses import DeletedResponse, InputItems, InputTokens, Response, ResponsesRequest
from asurge.server.system import health, metrics, tokenize, web_ui

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclasses.dataclass(frozen=True, slots=True)
class Route:
    """A route of the API.

    Attributes:
        body: what it reads; None: nothing.
        answer: what it answers with, as JSON; a media type: what it answers with otherwise.
        streams: whether it can answer with server-sent events.
        metered: which of a key's limits it counts against.
        open: whether it needs no key, because it reveals nothing that belongs to anybody.
    """

    method: str
    path: str
    handler: Handler
    body: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | str = "application/json"
    streams: bool = False
    metered: Meter | None = None
    open: bool = False

    @property
    def name(self) -> str:
        """Words joined by dots, as aiohttp wants them."""
        words = [word.split(":")[0].strip("{}") for word in self.path.split("/") if word]
        return ".".join(("asurge", *(word.replace("-", "_").replace(".", "_") for word in words), self.method.lower()))


def counting(path: str, handler: Handler, body: type[msgspec.Struct], answer: type[msgspec.Struct]) -> Route:
    """A route that the host works for."""
    return Route("POST", path, handler, body, answer, metered="requests")


def generating(path: str, handler: Handler, body: type[msgspec.Struct], answer: type[msgspec.Struct]) -> Route:
    """A route that an engine works for."""
    return Route("POST", path, handler, body, answer, streams=True, metered="tokens")


ROUTES = (
    generating("/v1/chat/completions", chat.chat_completions, ChatCompletionRequest, ChatCompletion),
    generating("/v1/completions", completions.completions, CompletionRequest, Completion),
    generating("/v1/responses", responses.create, ResponsesRequest, Response),
    generating("/v1/messages", messages.create, MessagesRequest, MessagesResponse),
    Route("POST", "/v1/embeddings", embeddings.create, EmbeddingRequest, EmbeddingResponse, metered="tokens"),
    Route("GET", "/v1/responses/{response}", responses.retrieve, answer=Response),
    Route("DELETE", "/v1/responses/{response}", responses.delete, answer=DeletedResponse),
    Route("POST", "/v1/responses/{response}/cancel", responses.cancel, answer=Response),
    Route("GET", "/v1/responses/{response}/input_items", responses.input_items, answer=InputItems),
    counting("/v1/responses/input_tokens", responses.input_tokens, ResponsesRequest, InputTokens),
    counting("/v1/messages/count_tokens", messages.count_tokens, CountMessagesRequest, CountMessagesResponse),
    Route("GET", "/v1/models", models.list_all, answer=ModelList),
    Route("GET", "/v1/models/{model:.+}", models.retrieve, answer=Model),
    counting("/tokenize", tokenize.tokenize, TokenizeRequest, TokenizeResponse),
    counting("/detokenize", tokenize.detokenize, DetokenizeRequest, DetokenizeResponse),
    Route("GET", "/tokenizer_info", tokenize.tokenizer_info),
    counting("/v1/count_tokens", tokenize.count_tokens, CountTokensRequest, CountTokensResponse),
    Route("GET", "/load", health.load),
    Route("GET", "/metrics", metrics.metrics, answer="text/plain"),
    Route("GET", "/dashboard/data", metrics.dashboard_data),
    Route("GET", "/health", health.health, open=True),
    Route("GET", "/liveness", health.liveness, open=True),
    Route("GET", "/readiness", health.readiness, open=True),
    Route("GET", "/ping", health.liveness, open=True),
    Route("POST", "/ping", health.liveness, open=True),
    Route("GET", "/version", health.version, open=True),
    Route("GET", "/", web_ui.chat, answer="text/html", open=True),
    Route("GET", "/dashboard", web_ui.dashboard, answer="text/html", open=True),
    Route("GET", "/assets/{name}", web_ui.asset, answer="text/plain", open=True),
)
