"""Options that several commands share."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asurge.config import DTYPES, EngineConfig
from asurge.errors import ConfigError, ModelLoadError
from asurge.model_paths import check_path, gguf_models
from asurge.params import SamplingParams
from asurge.processors import THREADS_VARIABLE, ThreadBudget

_PYTHON = {"True": "true", "False": "false", "None": "null"}
_POOLS = ("PJRT_NPROC", "RAYON_NUM_THREADS")
"""Variables for the number of threads that XLA (for what is not in the CPU kernels) and tokenizers start; read when they start them."""


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose and configure the engine."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--model",
        default="demo",
        help="'demo', a checkpoint folder, a GGUF file, a Hugging Face repository (owner/name, or owner/name:Q4_K_M for one of its GGUF files), or package:NAME",
    )
    group.add_argument("--tokenizer", default=None, help="folder or repository of the tokenizer; default: the model's")
    group.add_argument(
        "--dtype", default="bfloat16", choices=DTYPES, help="type of weights, activations and KV pages (bfloat16)"
    )
    group.add_argument(
        "--max-model-len",
        type=int,
        default=None,
        metavar="TOKENS",
        help="longest sequence, prompt and answer; default: the model's, at most 8192",
    )
    group.add_argument(
        "--threads",
        dest="kernel_threads",
        type=int,
        default=None,
        metavar="N",
        help=f"threads of the CPU kernels and of all other pools (also in {THREADS_VARIABLE}); default: as many as the process has processors",
    )
    group.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting of asurge.EngineConfig, such as kernels=xla; give it after the positional arguments",
    )
    group.add_argument("--max-num-seqs", type=int, default=None, metavar="N", help="sequences running at once (64)")


def engine_settings(given: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `asurge.Engine`; anything not given stays at its default. Sizes the pools of this process.

    Raises:
        ConfigError: an entry has no value, or the number of threads is none.
    """
    names = ("model", "tokenizer", "dtype", "max_model_len", "max_num_seqs", "kernel_threads")
    settings = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    settings = {**settings, "silent_mode": not sys.stderr.isatty(), **parse_settings(given.set)}
    _size_pools(EngineConfig(kernel_threads=settings.get("kernel_threads")))
    check_local(settings.get("model", "demo"))
    return settings


def check_local(model: str) -> None:
    """Refuse a path at which there is no checkpoint, before the imports that an engine needs.

    Raises:
        ModelLoadError: there is nothing, or a folder without a checkpoint.
    """
    check_path(model)
    path = Path(model).expanduser()
    if path.is_dir() and not (path / "config.json").exists() and not gguf_models(path):
        raise ModelLoadError(f"model={model!r} holds no config.json: it is not a checkpoint folder")


def _size_pools(config: EngineConfig) -> None:
    """Have libraries start no more threads than the kernels. They take the number from the environment only, which is not a library's to
    change; but a command has its process to itself. What an operator has set stays."""
    threads = ThreadBudget(config.kernel_threads).threads
    for variable in _POOLS:
        os.environ.setdefault(variable, str(threads))


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
    """Add the options of sampling."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, default=256, metavar="N", help="new tokens at most (256)")
    group.add_argument(
        "--temperature", type=float, default=temperature, metavar="T", help=f"0 is greedy ({temperature:g})"
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="keep the smallest set of tokens that reaches this probability (1)",
    )
    group.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="keep this many of the likeliest tokens; 0 keeps all (0)"
    )
    group.add_argument(
        "--seed", type=int, default=None, metavar="N", help="the same seed gives the same tokens; default: a random one"
    )
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
