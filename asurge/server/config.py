"""Settings of a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

from asurge.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of the server. Checked when made.

    Attributes:
        host, port: where `asurge serve` listens. Other machines reach it only if you say so, as with ``0.0.0.0``.
        require_api_key: refuse requests without a valid key; otherwise keys are optional, and usage is still counted.
        allow_query_key: take keys from ``?api_key=`` too, which ends up in logs of proxies.
        admin_key: opens ``/admin``; None: there is no ``/admin``.
        profile_dir: where ``/admin/profile`` writes traces; None: it takes none.
        share_prefix_cache: let requests of different keys hit each other's cached prefixes. How fast an answer comes
            reveals whether somebody else has sent the same text before.
        cors_origins: pages of these origins may call; ``*`` is any.
        max_body_bytes: of a request, also after decompression.
        max_prompts: prompts of one request to ``/v1/completions`` or ``/v1/embeddings``.
        max_choices: completions of one request, all prompts together.
        max_request_logprobs: logprobs that one request may return, over all positions of prompts and texts.
        body_timeout_s: within which the whole body of a request must arrive.
        write_timeout_s: a reader of a stream that takes nothing for this long is cut off, and its request ended; a slow
            one is left alone.
        idle_timeout_s: how long a connection may stay open without a request, and within which the head of one must arrive;
            should be longer than a proxy in front keeps connections. A mounted application has its host's.
        keep_alive_s: how often a stream with nothing to say sends a comment.
        drain_timeout_s: how long requests may go on when the server stops.
        keep_alive_on_engine_death: go on answering when an engine has failed, with errors, and 503 at ``/health``; otherwise
            `ApiServer` stops and raises the failure, so that a supervisor starts it again. A mounted application always
            goes on.
        tool_format, reasoning_format: of the model's texts (`asurge.parsing`); None: chosen by its chat template.
        template_kwargs: what requests may pass to the chat template.
        certificate, certificate_key: TLS, as PEM files; read again when they change.
        requests_per_minute, tokens_per_minute: for each key that has no limits of its own; None: unlimited.
        stored_responses: of ``/v1/responses``, kept for retrieval.
        vllm_metrics: name the figures of ``/metrics`` as vLLM does, too.

    Raises:
        ConfigError: a value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    require_api_key: bool = False
    allow_query_key: bool = True
    admin_key: str | None = dataclasses.field(default=None, repr=False)
    profile_dir: Path | None = None
    share_prefix_cache: bool = False
    cors_origins: Sequence[str] = ()
    max_body_bytes: int = 8 << 20
    max_prompts: int = 256
    max_choices: int = 512
    max_request_logprobs: int = 1 << 21
    body_timeout_s: float = 60.0
    write_timeout_s: float = 60.0
    idle_timeout_s: float = 75.0
    keep_alive_s: float = 15.0
    drain_timeout_s: float = 30.0
    keep_alive_on_engine_death: bool = False
    tool_format: str | None = None
    reasoning_format: str | None = None
    template_kwargs: Collection[str] = ("enable_thinking", "thinking", "reasoning_effort")
    certificate: Path | None = None
    certificate_key: Path | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    stored_responses: int = 1024
    vllm_metrics: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port={self.port} must be in [0, 65535]")
        for name in (
            "max_body_bytes",
            "max_prompts",
            "max_choices",
            "max_request_logprobs",
            "body_timeout_s",
            "write_timeout_s",
            "idle_timeout_s",
            "keep_alive_s",
            "stored_responses",
        ):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)} must be positive")
        if self.drain_timeout_s < 0:
            raise ConfigError(f"drain_timeout_s={self.drain_timeout_s} must not be negative")
        for name in ("requests_per_minute", "tokens_per_minute"):
            limit = getattr(self, name)
            if limit is not None and limit <= 0:
                raise ConfigError(f"{name}={limit} must be positive, or None for no limit")
        if (self.certificate is None) != (self.certificate_key is None):
            raise ConfigError("certificate and certificate_key belong together: give both, or neither")
        for name in ("cors_origins", "template_kwargs"):
            if isinstance(getattr(self, name), str):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be a list of texts")
        if self.admin_key is not None:
            check_key(self.admin_key)  # an empty one would let in whoever sends none


def check_key(key: str) -> None:
    """Check that a text can be an API key.

    Raises:
        ConfigError: it cannot be a key.
    """
    if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("an API key must have at least 8 printable ASCII characters and no spaces")
