"""Traces by JAX's profiler of the next steps, for TensorBoard, XProf or Perfetto."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio
import jax
from anyio import to_thread

from asurge.engine.status import EngineStatus
from asurge.errors import ConfigError, EngineStateError
from asurge.pipeline import Stage

_busy = anyio.Lock()  # JAX has one profiler in a process


class _Countdown:
    """`asurge.pipeline.StepObserver` that counts steps whose results have arrived."""

    def __init__(self, steps: int) -> None:
        self.left, self.done = steps, anyio.Event()

    def saw(self, stage: Stage, step_id: int, begin_s: float, end_s: float) -> None:
        if stage == "apply" and self.left:
            self.left -= 1
            if not self.left:
                self.done.set()


async def profile(
    engine: EngineStatus,
    output_dir: Path,
    *,
    num_batches: int = 10,
    timeout_s: float = 60.0,
    host_tracer_level: int | None = None,
    python_tracer_level: int | None = None,
) -> int:
    """Trace the next ``num_batches`` steps of an engine into a folder; ends early if they do not come.

    Args:
        host_tracer_level: how much of the host's work is traced, 0 (nothing) to 3; None: JAX's default.
        python_tracer_level: 1 traces Python's calls, 0 does not; None: JAX's default.

    Returns:
        The steps that were traced.

    Raises:
        ConfigError: ``num_batches`` or ``timeout_s`` is not positive, or a level is out of range.
        EngineStateError: a trace is being taken already.
    """
    if num_batches < 1 or timeout_s <= 0:
        raise ConfigError(f"num_batches={num_batches} and timeout_s={timeout_s} must be positive")
    options = _options(host_tracer_level, python_tracer_level)
    if _busy.locked():
        raise EngineStateError("a trace is being taken already: wait for its end")
    async with _busy:
        countdown = _Countdown(num_batches)
        await to_thread.run_sync(partial(jax.profiler.start_trace, str(output_dir), profiler_options=options))
        engine.observe_steps(countdown)
        try:
            with anyio.move_on_after(timeout_s):
                await countdown.done.wait()
        finally:
            with anyio.CancelScope(shield=True):
                if engine.is_running:
                    engine.observe_steps(None)
                await to_thread.run_sync(jax.profiler.stop_trace)
        return num_batches - countdown.left


def _options(host_tracer_level: int | None, python_tracer_level: int | None) -> jax.profiler.ProfileOptions:
    options = jax.profiler.ProfileOptions()
    levels = ("host_tracer_level", host_tracer_level, 3), ("python_tracer_level", python_tracer_level, 1)
    for name, level, most in levels:
        if level is None:
            continue
        if type(level) is not int or not 0 <= level <= most:
            raise ConfigError(f"{name}={level!r} must be an integer from 0 to {most}, or None for JAX's default")
        setattr(options, name, level)
    return options
