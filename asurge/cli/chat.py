"""``asurge chat``: a conversation in the terminal."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread
from rich.console import Console

from asurge.cli.options import add_engine_options, add_sampling_options, engine_settings, sampling_params
from asurge.cli.starting import started
from asurge.errors import AsurgeError, ConfigError

if TYPE_CHECKING:
    from asurge.engine import Engine
    from asurge.outputs import RequestOutput
    from asurge.params import SamplingParams

_HELP = """\
/help               this text
/clear              forget the conversation
/system TEXT        set the system message (and forget the conversation); without TEXT, remove it
/set NAME VALUE     temperature, top_p, top_k, max_tokens or seed
/tokens             figures of the last answer
/save FILE          write the conversation as JSON
/quit               leave (also Ctrl-D; Ctrl-C stops an answer)"""
_SETTABLE = {"temperature": float, "top_p": float, "top_k": int, "max_tokens": int, "seed": int}


def add_to(commands: Any) -> None:  # argparse keeps this type private
    """Declare the command."""
    parser = commands.add_parser(
        "chat", help="talk with a model", description="Talk with a model. /help lists commands."
    )
    parser.add_argument("named", nargs="?", metavar="MODEL", help="as --model; default: the demo")
    parser.add_argument("--system", default="", metavar="TEXT", help="system message")
    add_engine_options(parser)
    add_sampling_options(parser, temperature=0.0)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    if given.named is not None:
        if given.model != "demo":
            raise ConfigError(
                f"the model is named as an argument, {given.named!r}, and by --model {given.model!r}: use one of the two"
            )
        given.model = given.named
    params = sampling_params(given)
    anyio.run(_chat, given, params)
    return 0


async def _chat(given: argparse.Namespace, params: SamplingParams) -> None:
    console = Console(highlight=False)
    async with started(engine_settings(given)) as engine:
        session = Session(engine, params, console, system=given.system)
        if sys.stdin.isatty():
            import readline  # noqa: F401 - gives input() its history and editing

            console.print(f"[dim]{engine.name}; /help lists commands, Ctrl-D leaves[/dim]")
        await session.run()


class Session:
    """A conversation: its messages, its sampling parameters, and the commands that change both."""

    def __init__(self, engine: Engine, params: SamplingParams, console: Console, *, system: str = "") -> None:
        self.messages: list[dict[str, str]] = []
        self.params = params
        self.last: RequestOutput | None = None
        self._answering: anyio.CancelScope | None = None
        self._engine, self._console, self._system = engine, console, system

    async def run(self) -> None:
        """Read lines and answer them until the end of input."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch_interrupts)
            async for line in _lines(self._prompt()):
                if line.startswith("/"):
                    if not self.command(line):
                        break
                elif line.strip():
                    with anyio.CancelScope() as self._answering:
                        await self.answer(line)
                    self._answering = None
            tasks.cancel_scope.cancel()

    def command(self, line: str) -> bool:
        """Carry out a ``/`` command; False means leave."""
        name, _, rest = line[1:].strip().partition(" ")
        match name:
            case "quit" | "exit":
                return False
            case "help":
                self._say(_HELP)
            case "clear":
                self.messages.clear()
                self._say("forgotten")
            case "system":
                self._system = rest.strip()
                self.messages.clear()
                self._say("system message set" if self._system else "system message removed")
            case "set":
                self._set(rest)
            case "tokens":
                self._say(self._figures())
            case "save":
                self._save(rest.strip())
            case _:
                self._say(f"unknown command /{name}; /help lists them")
        return True

    async def answer(self, line: str) -> None:
        """Stream the answer to a line. The exchange is kept even if the answer is stopped halfway."""
        self.messages.append({"role": "user", "content": line})
        text = ""
        system = [{"role": "system", "content": self._system}] if self._system else []
        try:
            stream = await self._engine.chat([*system, *self.messages], self.params, stream=True)
            async with stream:
                async for output in stream:
                    text, self.last = output.accumulated_text, output
                    self._console.out(output.delta_text, end="", highlight=False)
        except AsurgeError as error:
            self.messages.pop()
            self._console.print(f"[red]{type(error).__name__}[/red]: ", end="")
            self._console.out(str(error), highlight=False)
            return
        finally:
            if self.messages and self.messages[-1]["role"] == "user":
                self.messages.append({"role": "assistant", "content": text})
            self._console.print()

    async def _watch_interrupts(self) -> None:
        """Ctrl-C ends the answer, not the program. A prompt cannot be left this way: its thread waits for a line."""
        with anyio.open_signal_receiver(signal.SIGINT) as interrupts:
            async for _ in interrupts:
                if self._answering is not None:
                    self._answering.cancel()
                else:
                    self._console.print("\n[dim]Ctrl-D or /quit leaves[/dim]")

    def _set(self, rest: str) -> None:
        name, _, value = rest.strip().partition(" ")
        if name not in _SETTABLE:
            self._say(f"usage: /set NAME VALUE; NAME is one of {', '.join(_SETTABLE)}")
            return
        try:
            self.params = dataclasses.replace(self.params, max_new_tokens=None, **{name: _SETTABLE[name](value)})
        except ValueError as error:  # InvalidRequestError is one
            self._say(str(error))
            return
        self._say(f"{name} = {_SETTABLE[name](value)}")

    def _save(self, name: str) -> None:
        if not name:
            self._say("usage: /save FILE")
            return
        try:
            Path(name).expanduser().write_text(json.dumps(self.messages, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            self._say(f"cannot write {name}: {error.strerror}")
            return
        self._say(f"saved {len(self.messages)} messages to {name}")

    def _figures(self) -> str:
        if self.last is None:
            return "no answer yet"
        last = self.last
        first = 0.0 if last.first_token_time is None else last.first_token_time
        return (
            f"{len(last.prompt_token_ids)} tokens in ({last.num_cached_tokens} cached), {last.num_generated_tokens} out, "
            f"first after {first * 1000:.0f} ms, {last.tokens_per_second:.0f} tokens/s"
        )

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    def _prompt(self) -> str:
        return "> " if sys.stdin.isatty() else ""


async def _lines(prompt: str) -> AsyncIterator[str]:
    """Lines of standard input, read in a worker thread; ends with it."""
    while True:
        try:
            yield await to_thread.run_sync(input, prompt)
        except EOFError:
            return
