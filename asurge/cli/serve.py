"""The command ``asurge serve [MODEL...]``."""

from __future__ import annotations

import argparse
import gc
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from asurge.cli.leaving import FAILED, at_once, leave
from asurge.cli.options import add_engine_options, check_local, engine_settings
from asurge.errors import ConfigError, EngineDeadError

if TYPE_CHECKING:
    from asurge.engine import Engine
    from asurge.server.state import ServerState

KEYS_VARIABLE = "ASURGE_API_KEYS"
ADMIN_VARIABLE = "ASURGE_ADMIN_KEY"


def add_to(commands: Any) -> None:  # argparse keeps this type private
    """Declare the command."""
    parser = commands.add_parser(
        "serve",
        help="serve OpenAI's and Anthropic's APIs over HTTP",
        description="Serve OpenAI's and Anthropic's APIs over HTTP. Stops on SIGINT or SIGTERM, once requests in progress are done.",
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="[NAME=]MODEL",
        help="'demo' (the default), a folder, a GGUF file, or a repository; several by name",
    )
    parser.add_argument(
        "--served-model-name",
        action="append",
        default=[],
        metavar="NAME",
        help="another name for the first model; may be repeated",
    )
    _add_network_options(parser.add_argument_group("network"))
    _add_key_options(parser.add_argument_group("keys and limits"))
    group = parser.add_argument_group("answers")
    group.add_argument(
        "--tool-call-parser",
        dest="tool_format",
        default=None,
        metavar="FORMAT",
        help="default: chosen by the chat template",
    )
    group.add_argument(
        "--reasoning-parser",
        dest="reasoning_format",
        default=None,
        metavar="FORMAT",
        help="default: chosen by the chat template",
    )
    group.add_argument(
        "--chat-template-kwarg",
        dest="template_kwargs",
        action="append",
        default=None,
        metavar="NAME",
        help="argument that requests may pass to the chat template; may be repeated",
    )
    add_engine_options(parser)
    parser.set_defaults(run=run, model=None)  # so that a model that is given is not mistaken for the default


def _add_network_options(group: Any) -> None:
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 to be reached from other machines (127.0.0.1)",
    )
    group.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (8000)")
    group.add_argument("--certificate", type=Path, default=None, metavar="FILE", help="TLS: certificate chain, PEM")
    group.add_argument("--certificate-key", type=Path, default=None, metavar="FILE", help="TLS: private key, PEM")
    group.add_argument(
        "--cors-origin",
        dest="cors_origins",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin whose pages may call; may be repeated, * is any",
    )
    group.add_argument(
        "--max-body-bytes",
        type=int,
        default=8 << 20,
        metavar="N",
        help="largest body of a request, also after decompression (8 MiB)",
    )
    group.add_argument(
        "--idle-timeout",
        dest="idle_timeout_s",
        type=float,
        default=75.0,
        metavar="SECONDS",
        help="how long a connection may stay open without a request (75)",
    )
    group.add_argument(
        "--drain-timeout",
        dest="drain_timeout_s",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long requests in progress may go on once the server stops (30)",
    )
    group.add_argument(
        "--profile-dir",
        type=Path,
        default=None,
        metavar="FOLDER",
        help=f"folder for traces that /admin/profile takes (with {ADMIN_VARIABLE})",
    )
    group.add_argument(
        "--keep-alive-on-engine-death",
        action="store_true",
        help="go on answering, with errors and 503 at /health, when an engine has failed, instead of ending with status 2",
    )
    group.add_argument("--no-access-log", action="store_true", help="no log line for each request")


def _add_key_options(group: Any) -> None:
    group.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"a key to accept; with one, every request needs a key; may be repeated (also in {KEYS_VARIABLE}, separated by commas)",
    )
    group.add_argument(
        "--api-key-file",
        type=Path,
        default=None,
        metavar="FILE",
        help="file with an API key on each line, with an optional label after it",
    )
    group.add_argument("--no-query-key", action="store_true", help="refuse keys in ?api_key=")
    group.add_argument(
        "--share-prefix-cache", action="store_true", help="let requests of different keys share cached prefixes"
    )
    group.add_argument(
        "--requests-per-minute",
        type=float,
        default=None,
        metavar="N",
        help="requests that each key may send in a minute",
    )
    group.add_argument(
        "--tokens-per-minute", type=float, default=None, metavar="N", help="tokens that each key may use in a minute"
    )


def run(given: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    settings, keys = _settings(given), _keys(given)
    for text in given.models:  # before the imports, which take seconds
        check_local(text.partition("=")[2] or text)
    logging.getLogger("asurge").setLevel(logging.WARNING)
    if not given.no_access_log:
        access = logging.getLogger("asurge.access")
        access.setLevel(logging.INFO)
    with at_once():
        try:
            from asurge.server import ApiServer
        except ImportError as error:
            raise ConfigError(str(error)) from error
        engines = _engines(given)
    first = next(iter(engines))
    aliases = {name: first for name in given.served_model_name if name != first}
    server = ApiServer(engines, require_api_key=bool(keys), api_keys=keys, aliases=aliases, **settings)
    console = Console(stderr=True, highlight=False)
    # What exists when models are ready stays. The collector would look through it all now and then, 175 ms in which no
    # token comes; a library leaves that to its host, but this process belongs to the server alone.
    failure: EngineDeadError | None = None
    try:
        server.fire(
            tell=lambda line: console.print(f"asurge: {line}", markup=False),
            on_ready=gc.freeze,
            on_stop=lambda: _leave_loading(server.state),
        )
    except EngineDeadError as error:
        failure = error
    if any(engine.device_hangs for engine in engines.values()):  # Python, or JAX, may wait for it for ever
        if failure is None:
            leave(0, "stopped, although a device hangs")
        leave(FAILED, f"error: {failure}")
    if failure is not None:
        raise failure
    return 0


def _leave_loading(state: ServerState) -> None:
    """Stop at once where models still load and nobody waits for an answer."""
    if not state.settled.is_set() and not state.active:
        leave(0, "stopped while loading")


def _engines(given: argparse.Namespace) -> dict[str, Engine]:
    """Engines by the names they are served under.

    Raises:
        ConfigError: two have the same name, or models are given in two ways.
    """
    from asurge.engine import Engine

    settings = engine_settings(given)
    if given.models and "model" in settings:
        raise ConfigError(f"models are named as arguments, and by model={settings['model']!r}: use one of the two")
    engines: dict[str, Engine] = {}
    for text in given.models or [settings.get("model", "demo")]:
        name, equals, model = text.partition("=")
        engine = Engine(**{**settings, "model": model if equals else text})
        name = name if equals else engine.name
        if name in engines:
            raise ConfigError(f"two models are named {name!r}: give them names, as a={text}")
        engines[name] = engine
    return engines


def _settings(given: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `asurge.server.ServerConfig`."""
    names = ("host", "port", "certificate", "certificate_key", "cors_origins", "max_body_bytes", "idle_timeout_s", "drain_timeout_s", "tool_format", "reasoning_format", "share_prefix_cache", "requests_per_minute", "tokens_per_minute", "profile_dir", "keep_alive_on_engine_death")  # fmt: skip
    settings = {name: getattr(given, name) for name in names}
    settings["allow_query_key"] = not given.no_query_key
    settings["admin_key"] = os.environ.get(ADMIN_VARIABLE) or None
    if given.template_kwargs is not None:
        settings["template_kwargs"] = tuple(given.template_kwargs)
    return settings


def _keys(given: argparse.Namespace) -> dict[str, dict[str, str]]:
    """All keys, with their labels.

    Raises:
        ConfigError: the file cannot be read; or it, or the environment variable, holds no key.
    """
    keys: dict[str, dict[str, str]] = {key: {} for key in given.api_key}
    if (variable := os.environ.get(KEYS_VARIABLE)) is not None:
        named = [key.strip() for key in variable.split(",") if key.strip()]
        if not named:  # a server that was meant to need keys must not be open
            raise ConfigError(f"{KEYS_VARIABLE} holds no key: add one, or leave it out")
        keys |= {key: {} for key in named}
    if given.api_key_file is not None:
        try:
            lines = given.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"api_key_file={str(given.api_key_file)!r} cannot be read: {why}") from error
        listed = [line.strip().partition(" ") for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not listed:
            raise ConfigError(f"api_key_file={str(given.api_key_file)!r} holds no key: add one, or leave it out")
        keys |= {key: {"label": label.strip()} for key, _, label in listed}
    return keys
