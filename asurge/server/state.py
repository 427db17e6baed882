"""State that the handlers of a server share: its models, its keys, what is under way, and whether it still takes requests."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import anyio
from aiohttp import web

from asurge.engine import Engine
from asurge.errors import ConfigError
from asurge.observe import EngineMetrics, LoopLag, RequestFigures
from asurge.parsing import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    ReasoningFormat,
    ToolFormat,
    detect,
)
from asurge.server.config import ServerConfig
from asurge.server.errors import ApiError, cancelled
from asurge.server.keys import KeyRing

_LOADING_RETRY_S = 5.0
_LARGE_TEXTS = 2
"""That are counted at a time: 4 MB take 650 MB meanwhile."""


class Rates:
    """Growth rates of two counters, over the last seconds in which somebody looked."""

    def __init__(self, over_s: float = 5.0) -> None:
        self._over_s = over_s
        self._seen: deque[tuple[float, int, int]] = deque()

    def seen(self, now_s: float, first: int, second: int) -> tuple[float, float]:
        """Take their values now; returns their growth per second."""
        while len(self._seen) > 1 and self._seen[1][0] < now_s - self._over_s:
            self._seen.popleft()
        self._seen.append((now_s, first, second))
        then_s, first_then, second_then = self._seen[0]
        passed = max(now_s - then_s, 1e-9)
        return (first - first_then) / passed, (second - second_then) / passed


@dataclasses.dataclass(slots=True)
class Served:
    """A model that is served.

    Attributes:
        owned: whether the server started the engine, and stops it.
        error: why it could not start.
    """

    name: str
    engine: Engine
    owned: bool = False
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))
    error: BaseException | None = None
    tool_format: ToolFormat | None = None
    reasoning_format: ReasoningFormat | None = None
    figures: RequestFigures | None = None
    rates: Rates = dataclasses.field(default_factory=Rates)


class UnderWay(Protocol):
    """A request under way."""

    def abort(self) -> None: ...


class ServerState:
    """The state of one server.

    Args:
        aliases: further names of models.

    Raises:
        ConfigError: there is no model, a name is taken twice, or a format is unknown.
    """

    def __init__(
        self, engines: Mapping[str, Engine], aliases: Mapping[str, str], keys: KeyRing, config: ServerConfig
    ) -> None:
        if not engines:
            raise ConfigError("engines is empty: give at least one")
        for kind, name, known in (("tool_format", config.tool_format, TOOL_FORMATS), ("reasoning_format", config.reasoning_format, REASONING_FORMATS)):  # fmt: skip
            if name is not None and name not in known:
                raise ConfigError(f"{kind}={name!r} is unknown: use one of {', '.join(sorted(known))}")
        self.config, self.keys = config, keys
        self.models = {name: Served(name, engine) for name, engine in engines.items()}
        for alias, name in aliases.items():
            if name not in engines or alias in engines:
                raise ConfigError(f"the alias {alias!r} must be a new name for one of {', '.join(engines)}")
        self.aliases = dict(aliases)
        # Not shown to anybody; who knows the path of a folder may use it.
        self._folders = {one.config.model: name for name, one in engines.items() if name == one.name}
        self.metrics: EngineMetrics | None = None
        self.lag = LoopLag()
        self.started_s = time.time()
        self.disconnects = 0
        self.settled, self.engine_died = anyio.Event(), anyio.Event()
        self.large_texts = anyio.CapacityLimiter(_LARGE_TEXTS)
        self._stopping, self._paused, self._holds = False, False, 0
        self._active: set[UnderWay] = set()
        self._idle = anyio.Event()

    # ── models ──────────────────────────────────────────────────────────────────────────────────

    def find(self, name: str | None) -> Served:
        """The model a request is for; without a name, the first.

        Raises:
            ApiError: there is none, or it is not ready.
        """
        if name is None:
            found = next(iter(self.models.values()))
        elif (one := self.models.get(self.aliases.get(name) or self._folders.get(name, name))) is not None:
            found = one
        else:
            known = ", ".join((*self.models, *self.aliases))
            raise ApiError(
                f"the model {name[:100]!r} does not exist: use one of {known}",
                status=404,
                code="model_not_found",
                param="model",
            )
        if found.error is not None or found.engine.state == "stopped":
            raise ApiError("the model is not available", status=503, kind="server_error", code="unavailable")
        if found.engine.state != "running":
            raise ApiError(
                "the model is loading",
                status=503,
                kind="server_error",
                code="loading",
                retry_after_s=_LOADING_RETRY_S,
            )
        return found

    def opened(self, served: Served) -> None:
        """A model's engine runs from now on."""
        tokenizer = served.engine.tokenizer
        tools, _ = detect(tokenizer.tool_template)
        _, reasoning = detect(tokenizer.chat_template)
        tools, reasoning = self.config.tool_format or tools, self.config.reasoning_format or reasoning
        if reasoning is None and all(map(tokenizer.is_special_text, ("<think>", "</think>"))):
            reasoning = "think"  # templates need not mention what models were trained to write
        served.tool_format = None if tools is None else TOOL_FORMATS[tools]
        served.reasoning_format = None if reasoning is None else REASONING_FORMATS[reasoning]
        if self.metrics is None:
            self.metrics = EngineMetrics(served.engine.max_model_len, vllm_names=self.config.vllm_metrics)
        served.figures = self.metrics.watch(served.name, served.engine)

    @property
    def is_ready(self) -> bool:
        """Whether every model answers."""
        return not (self._stopping or self.is_paused) and all(
            one.engine.is_running and one.error is None for one in self.models.values()
        )

    @property
    def is_healthy(self) -> bool:
        """Whether nothing has failed."""
        return all(served.error is None and served.engine.failure is None for served in self.models.values())

    # ── requests under way ──────────────────────────────────────────────────────────────────────

    @property
    def active(self) -> int:
        """Requests under way."""
        return len(self._active)

    def enter(self, one: UnderWay) -> None:
        """A request that an engine works for begins.

        Raises:
            ApiError: the server takes no more.
        """
        if self._stopping:
            raise cancelled(self.config.drain_timeout_s)
        if self.is_paused:
            raise ApiError(
                "the server is paused",
                status=503,
                kind="server_error",
                code="paused",
                retry_after_s=_LOADING_RETRY_S,
            )
        self._active.add(one)
        self.lag.begin()

    def leave(self, one: UnderWay) -> None:
        """It is over."""
        self._active.discard(one)
        self.lag.end()
        if not self._active:
            self._idle.set()
            self._idle = anyio.Event()

    def pause(self, paused: bool) -> None:
        """Refuse further requests, or take them again; those under way go on."""
        self._paused = paused

    @contextmanager
    def held(self) -> Iterator[None]:
        """Refuse further requests for a while, whatever `pause` says; others may do so at the same time."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    @property
    def is_paused(self) -> bool:
        """Whether further requests are refused, for now."""
        return self._paused or self._holds > 0

    async def drain(self) -> bool:
        """Take no more requests and wait for those under way; False if they took too long."""
        self._stopping = True
        return await self.idle(self.config.drain_timeout_s)

    def abort(self) -> None:
        """End all requests under way; their clients get an error."""
        for one in list(self._active):
            one.abort()

    async def idle(self, timeout_s: float) -> bool:
        """Wait until no request is under way; False if that took too long."""
        with anyio.move_on_after(timeout_s) as scope:
            while self._active:
                await self._idle.wait()
        return not scope.cancelled_caught


STATE = web.AppKey("asurge", ServerState)
