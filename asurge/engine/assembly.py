"""Builds what an engine runs on: tokenizer, model, runner, scheduler. Blocking; called from a worker thread."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from asurge.config import CacheConfig, EngineConfig
from asurge.errors import ConfigError, EngineStateError
from asurge.models import DecoderConfig, about_checkpoint, convert, open_model, resolve_checkpoint
from asurge.plan import Runner
from asurge.processors import ThreadBudget
from asurge.runner import DeviceRunner, KernelThreads, Leaves, leaves_of, use_persistent_cache
from asurge.scheduler import Scheduler
from asurge.text import Tokenizer, load_tokenizer
from asurge.threads import collector_paused

DEFAULT_MAX_MODEL_LEN = 8192


@dataclasses.dataclass(frozen=True, slots=True)
class EngineParts:
    """The pieces of a started engine.

    Attributes:
        vocab_size: the model's: ids at or beyond it are refused.
        threads: the engine's part in the kernels' team.
        compilations: how many there have been since the start.
        load_weights: blocking; reads another checkpoint of the same shape. What it returns puts these weights in place, at once, and
            returns what frees the others, blocking.
        fallbacks: what runs in plain XLA although kernels were wanted, and why.
        about: what the checkpoint says about itself (`asurge.models.about_checkpoint`).
    """

    tokenizer: Tokenizer
    scheduler: Scheduler
    runner: Runner
    vocab_size: int
    threads: KernelThreads
    compilations: Callable[[], int]
    load_weights: Callable[[str], Callable[[], Callable[[], None]]]
    fallbacks: tuple[str, ...] = ()
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)


def assemble(config: EngineConfig, check: Callable[[], None] = lambda: None) -> EngineParts:
    """Load and compile everything a config asks for.

    Args:
        check: called now and then; ends this if it raises.

    Raises:
        ModelLoadError, ConfigError, CompilationError: see there.
        EngineStateError: this process was forked from one in which JAX runs.
    """
    if (process := _jax_process()) != os.getpid():
        raise EngineStateError(
            f"JAX runs in process {process}, from which this one was forked without its threads: have processes spawned "
            "(multiprocessing.set_start_method('spawn')), or forked before an engine starts"
        )
    budget = ThreadBudget(config.kernel_threads)
    budget.report()
    use_persistent_cache(config.compilation_cache_dir)
    folder = resolve_checkpoint(config.model)
    text = folder if config.tokenizer is None else resolve_checkpoint(config.tokenizer)
    threads = KernelThreads(budget, config.kernels, config.kernel_nice)
    try:
        return _assemble(config, folder, text, threads, check)
    except BaseException:
        threads.leave()
        raise


@functools.cache
def _jax_process() -> int:
    """The process in which the first engine was started; a fork has that of its parent."""
    return os.getpid()


def _assemble(
    config: EngineConfig, folder: Path, text: Path, threads: KernelThreads, check: Callable[[], None]
) -> EngineParts:
    # The tokenizer's imports and parsing overlap with reading weights and compiling.
    with ThreadPoolExecutor(1, thread_name_prefix="asurge-tokenizer") as pool:
        tokenizer, about = pool.submit(load_tokenizer, text), pool.submit(about_checkpoint, folder)
        model = open_model(folder, dtype=config.dtype, progress=not config.silent_mode, check=check)
        reason = convert(model, kernels=config.kernels, quantization=config.quantization)
        max_model_len = _max_model_len(config, model.config.max_position_embeddings)
        runner = DeviceRunner(
            model,
            config,
            max_model_len=max_model_len,
            logits_processors=tuple(config.logits_processors.values()),
            threads=threads,
            check=check,
        )
        cache = config.cache if config.enable_prefix_caching else CacheConfig(enable_prefix_caching=False)
        scheduler = Scheduler(runner.limits, config.scheduler, cache, max_queued_requests=config.max_queued_requests)
        reasons = {"matrix products": reason, "attention": runner.fallback}
        fallbacks = tuple(f"{what}: {why}" for what, why in reasons.items() if why is not None)
        return EngineParts(
            tokenizer.result(),
            scheduler,
            runner,
            model.config.vocab_size,
            threads,
            lambda: runner.compilations,
            partial(_load_weights, config, model.config, runner),
            fallbacks,
            about.result(),
        )


def _load_weights(
    config: EngineConfig, shape: DecoderConfig, runner: DeviceRunner, name: str
) -> Callable[[], Callable[[], None]]:
    folder = resolve_checkpoint(name)
    with collector_paused():  # until nothing but the arrays is left
        return partial(runner.replace_weights, _other_leaves(config, shape, name, folder))


def _other_leaves(config: EngineConfig, shape: DecoderConfig, name: str, folder: Path) -> Leaves:
    model = open_model(folder, dtype=config.dtype, progress=not config.silent_mode)
    if model.config != shape:
        raise ConfigError(f"model={name!r} has a different shape from the model being served: start an engine for it")
    convert(model, kernels=config.kernels, quantization=config.quantization)
    return leaves_of(model)


def _max_model_len(config: EngineConfig, model_limit: int) -> int:
    if config.max_model_len is None:
        return min(model_limit, DEFAULT_MAX_MODEL_LEN)
    if config.max_model_len > model_limit:
        raise ConfigError(
            f"max_model_len={config.max_model_len} exceeds the {model_limit} positions the model was made for: "
            f"use at most {model_limit}"
        )
    return config.max_model_len
