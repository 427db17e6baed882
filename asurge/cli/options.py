"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from asurge.config import DTYPES
from asurge.errors import ConfigError
from asurge.params import SamplingParams

_PYTHON = {"True": "true", "False": "false", "None": "null"}


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """What engine to start."""
    group = parser.add_argument_group("engine")
    group.add_argument("--model", default="demo", help="'demo', a checkpoint folder, or a Hugging Face repository")
    group.add_argument("--tokenizer", default=None, help="folder or repository; default: the model's")
    group.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    group.add_argument("--max-model-len", type=int, default=None, metavar="TOKENS", help="longest sequence")
    group.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting, such as kernels=xla; behind the arguments without names",
    )
    group.add_argument("--max-num-seqs", type=int, default=None, metavar="N", help="sequences running at once")


def engine_settings(given: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `asurge.Engine`; anything not given stays at its default."""
    names = ("model", "tokenizer", "dtype", "max_model_len", "max_num_seqs")
    settings = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    return {**settings, "silent_mode": not sys.stderr.isatty(), **parse_settings(given.set)}


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """Engine settings from NAME=VALUE, with values in JSON, or True, False and None; anything else is text.

    Raises:
        ConfigError: an entry has no value.
    """
    settings: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ConfigError(f"set={item!r} must be NAME=VALUE, such as kernels=xla")
        try:
            settings[name] = json.loads(_PYTHON.get(value, value))
        except ValueError:
            settings[name] = value
    return settings


def add_sampling_options(parser: argparse.ArgumentParser, *, temperature: float) -> None:
    """How to sample."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, default=256, metavar="N", help="new tokens at most")
    group.add_argument("--temperature", type=float, default=temperature, metavar="T", help="0 is greedy")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P")
    group.add_argument("--top-k", type=int, default=0, metavar="K")
    group.add_argument("--seed", type=int, default=None, metavar="N")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end at this text; may be repeated")


def sampling_params(given: argparse.Namespace) -> SamplingParams:
    """The parsed sampling options.

    Raises:
        InvalidRequestError: one is out of range.
    """
    return SamplingParams(
        max_tokens=given.max_tokens,
        temperature=given.temperature,
        top_p=given.top_p,
        top_k=given.top_k,
        seed=given.seed,
        stop=given.stop,
    )
