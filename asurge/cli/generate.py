"""The command ``asurge generate PROMPT...``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

import anyio
import orjson

from asurge.cli.options import add_engine_options, add_sampling_options, engine_settings, sampling_params
from asurge.cli.starting import started

if TYPE_CHECKING:
    from asurge.engine import Engine
    from asurge.params import SamplingParams


def add_to(commands: Any) -> None:  # argparse keeps this type private
    """Declare the command."""
    parser = commands.add_parser(
        "generate", help="complete prompts", description="Complete prompts. A single prompt is streamed."
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="'-' reads standard input")
    parser.add_argument("--chat", action="store_true", help="send each prompt as a user's message")
    parser.add_argument("--json", action="store_true", help="one JSON document per line, with metrics")
    add_engine_options(parser)
    add_sampling_options(parser, temperature=0.0)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    params = sampling_params(given)  # refused before anything is loaded
    prompts = [sys.stdin.read() if prompt == "-" else prompt for prompt in given.prompts]
    anyio.run(_generate, given, prompts, params)
    return 0


async def _generate(given: argparse.Namespace, prompts: list[str], params: SamplingParams) -> None:
    async with started(engine_settings(given)) as engine:
        if len(prompts) == 1 and not given.json:
            await _stream(engine, prompts[0], params, as_chat=given.chat)
        else:
            await _batch(engine, prompts, params, as_chat=given.chat, as_json=given.json)


async def _stream(engine: Engine, prompt: str, params: SamplingParams, *, as_chat: bool) -> None:
    if as_chat:
        stream = await engine.chat([{"role": "user", "content": prompt}], params, stream=True)
    else:
        stream = engine.stream(prompt, params)
        print(prompt, end="", flush=True)
    async for output in stream:
        print(output.delta_text, end="", flush=True)
    print()


async def _batch(engine: Engine, prompts: list[str], params: SamplingParams, *, as_chat: bool, as_json: bool) -> None:
    if as_chat:
        outputs = [await engine.chat([{"role": "user", "content": prompt}], params) for prompt in prompts]
    else:
        outputs = await engine.generate(list(prompts), params, use_tqdm=sys.stderr.isatty())
    for prompt, output in zip(prompts, outputs, strict=True):
        if as_json:
            print(orjson.dumps({"prompt": prompt, **output.get_summary()}).decode())
        else:
            print(f"{prompt}{' ' if as_chat else ''}{output.get_text()}\n")
