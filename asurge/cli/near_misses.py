"""Suggest the option that is meant by an unknown one: other engines' names, and typing errors."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

_OTHERS = {
    # vLLM and SGLang
    "--quantization": "--set quantization=int8",
    "--kv-cache-dtype": "--set kv_cache_dtype=int8",
    "--max-model-length": "--max-model-len",
    "--context-length": "--max-model-len",
    "--gpu-memory-utilization": "--set hbm_utilization=0.85",
    "--mem-fraction-static": "--set hbm_utilization=0.85",
    "--max-num-batched-tokens": "--set max_num_batched_tokens=N",
    "--block-size": "--set page_size=N",
    "--enable-prefix-caching": "nothing: it is on; --set enable_prefix_caching=false turns it off",
    "--no-enable-prefix-caching": "--set enable_prefix_caching=false",
    "--tensor-parallel-size": "nothing: an engine uses one device",
    "--tp": "nothing: an engine uses one device",
    "--data-parallel-size": "one server for each device",
    "--trust-remote-code": "nothing: code that comes with a checkpoint is never run",
    "--ssl-certfile": "--certificate",
    "--ssl-keyfile": "--certificate-key",
    "--allowed-origins": "--cors-origin",
    "--enable-auto-tool-choice": "nothing: it is on",
    "--disable-log-requests": "--no-access-log",
    # llama.cpp and ollama
    "--ctx-size": "--max-model-len",
    "-c": "--max-model-len",
    "-m": "--model",
    "-n": "--max-tokens",
    "--n-predict": "--max-tokens",
    "--parallel": "--max-num-seqs",
    "-np": "--max-num-seqs",
    "-t": "--threads",
    "--temp": "--temperature",
    "--alias": "--served-model-name",
    "-ngl": "nothing: all layers are on the device",
    "--n-gpu-layers": "nothing: all layers are on the device",
}
"""Options of asurge, by the names that other engines have for them."""


def refuse(parser: argparse.ArgumentParser, unknown: Sequence[str], command: str) -> NoReturn:
    """End with the usage and one line that says what the first unknown argument may have been meant as.

    Args:
        command: whose options are meant.
    """
    name = unknown[0].partition("=")[0]
    meant = _OTHERS.get(name)
    if meant is None and name.startswith("-"):
        close = difflib.get_close_matches(name, _options(parser, command), 1, 0.7)
        meant = close[0] if close else None
    hint = "" if meant is None else f"; use {meant}"
    kind = "option" if name.startswith("-") else "argument"
    parser.error(f"there is no {kind} {name}{hint} (asurge {command} --help lists all)")


def _options(parser: argparse.ArgumentParser, command: str) -> list[str]:
    """The options of a command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and command in action.choices:
            return [name for one in action.choices[command]._actions for name in one.option_strings]
    return []
