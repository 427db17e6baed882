"""`ApiServer`: the application with its keys, and a process around it."""

from __future__ import annotations

import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
from aiohttp import web

from asurge.engine import Engine
from asurge.errors import ConfigError
from asurge.server.app import make_app
from asurge.server.config import ServerConfig
from asurge.server.http.connection import ConnectionRunner
from asurge.server.http.disconnect import only
from asurge.server.keys import KeyRing
from asurge.server.state import STATE, ServerState

_log = logging.getLogger("asurge.server")
_RELOAD_S = 60.0
_BACKLOG = 1024
MAX_HEADER_BYTES = 16 << 10


class ApiServer:
    """OpenAI's API over an engine.

        server = ApiServer(Engine("demo"), require_api_key=True)
        print(server.generate_api_key(label="notebook"))
        server.fire(port=8000)

    Args:
        engine: one, or several by name; those that were not started are started and stopped with the server.
        api_keys: known keys, with their ``label`` and limits.
        settings: those of `ServerConfig`.

    Raises:
        ConfigError: a setting or a key is wrong.
    """

    def __init__(
        self,
        engine: Engine | Mapping[str, Engine],
        *,
        require_api_key: bool = False,
        api_keys: Mapping[str, Mapping[str, Any]] | Iterable[str] | None = None,
        aliases: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        self.config = ServerConfig(require_api_key=require_api_key, **settings)
        self.keys = KeyRing(
            requests_per_minute=self.config.requests_per_minute, tokens_per_minute=self.config.tokens_per_minute
        )
        given = api_keys if isinstance(api_keys, Mapping) else {key: {} for key in api_keys or ()}
        for key, about in given.items():
            self.keys.add(key, about)
        self.app = make_app(engine, self.config, aliases=aliases, keys=self.keys)

    @property
    def state(self) -> ServerState:
        """State that the handlers share."""
        return self.app[STATE]

    def generate_api_key(self, label: str = "") -> str:
        """A new key that the server knows. Only its hash is kept."""
        return self.keys.generate(label)

    def fire(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        tell: Callable[[str], None] = lambda line: None,
        on_ready: Callable[[], None] = lambda: None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve until SIGINT or SIGTERM, then let requests under way finish. Blocks.

        Raises:
            EngineDeadError: an engine has failed (see `ServerConfig.keep_alive_on_engine_death`).
            ConfigError: the address cannot be used, or the certificate cannot be read.
            AsurgeError: no model could be started.
        """
        uvloop = find_spec("uvloop") is not None
        serve = partial(self.serve, tell=tell, on_ready=on_ready, on_stop=on_stop)
        anyio.run(serve, host, port, backend_options={"use_uvloop": uvloop})

    async def serve(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        tell: Callable[[str], None] = lambda line: None,
        on_ready: Callable[[], None] = lambda: None,
        on_stop: Callable[[], None] = lambda: None,
        signals: bool = True,
    ) -> None:
        """`fire`, within an event loop.

        Args:
            tell: called with a line once the server listens, and again when its models are ready.
            on_ready: called before the latter.
            on_stop: called when a signal has come, before anything is stopped.
            signals: stop on SIGINT and SIGTERM; otherwise on cancellation.
        """
        host, port = self.config.host if host is None else host, self.config.port if port is None else port
        context = None if self.config.certificate is None else _tls(self.config)
        # Before models load: a wrong address should not have to wait for that.
        sock = _bound(host, port, self.config.write_timeout_s)
        # Cancelling handlers of clients that are gone frees their pages at once.
        runner = ConnectionRunner(
            self.app,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=1.0,
            keepalive_timeout=self.config.idle_timeout_s,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        await runner.setup()
        try:
            await web.SockSite(runner, sock, ssl_context=context, backlog=_BACKLOG).start()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._until_ready, tell, on_ready, _url(runner, tls=context is not None))
                if context is not None:
                    tasks.start_soon(_reload, context, self.config)
                if not self.config.keep_alive_on_engine_death:
                    tasks.start_soon(self._until_dead)
                await _stopped(signals=signals)
                on_stop()
                tasks.cancel_scope.cancel()
        except ExceptionGroup as group:
            raise only(group) from None
        finally:
            with anyio.CancelScope(shield=True):
                await runner.cleanup()

    async def _until_dead(self) -> None:
        """Stop once an engine has failed: nothing but a new start brings it back.

        Raises:
            EngineDeadError: it has.
        """
        await self.state.engine_died.wait()
        for served in self.state.models.values():
            if (failure := served.engine.failure) is not None:
                raise failure.again()

    async def _until_ready(self, tell: Callable[[str], None], on_ready: Callable[[], None], url: str) -> None:
        """Report what can be used, and stop if nothing can."""
        models = self.state.models.values()
        tell(f"{url}/ loading {', '.join(self.state.models)} …")
        await self.state.settled.wait()
        failed = [one for one in models if one.error is not None]
        if len(failed) == len(models) and failed[0].error is not None:
            raise failed[0].error
        on_ready()
        tell("ready" + "".join(f", without {one.name}: {one.error}" for one in failed))


def _bound(host: str, port: int, write_timeout_s: float) -> socket.socket:
    if not host:  # for the system, that is all addresses
        raise ConfigError(
            "host='' names no address: leave it out for this machine alone, or say 0.0.0.0 for all others too"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"host={host!r}, port={port} cannot be used: {error.strerror or error}") from error
    # Streams are watched separately. Whole answers that nobody takes, and what connections still hold when they are
    # closed, are left for Linux to give up; connections inherit the setting.
    if (option := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:
        sock.setsockopt(socket.IPPROTO_TCP, option, int(write_timeout_s * 1000))
    return sock


def _url(runner: web.AppRunner, *, tls: bool) -> str:
    host, port = runner.addresses[0][:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"


async def _stopped(*, signals: bool) -> None:
    if not signals:
        await anyio.sleep_forever()
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        async for _ in received:
            return


def _tls(config: ServerConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, config)
    return context


def _load(context: ssl.SSLContext, config: ServerConfig) -> None:
    assert config.certificate is not None
    try:
        context.load_cert_chain(config.certificate, config.certificate_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"certificate={str(config.certificate)!r} and its key cannot be used: {error}") from error


async def _reload(context: ssl.SSLContext, config: ServerConfig) -> None:
    """Give new connections a certificate that has been renewed."""

    def changed() -> tuple[float, ...]:
        return tuple(
            Path(one).stat().st_mtime for one in (config.certificate, config.certificate_key) if one is not None
        )

    before = changed()
    while True:
        await anyio.sleep(_RELOAD_S)
        try:
            if (now := changed()) != before:
                _load(context, config)
                before = now
        except (OSError, ConfigError) as error:
            _log.warning("the certificate could not be read again: %s", error)
