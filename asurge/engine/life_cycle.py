"""`LifeCycle`: starts what an engine is made of, and stops it."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Literal

import anyio
from anyio import CapacityLimiter, from_thread, to_thread

from asurge.config import EngineConfig
from asurge.engine.admission import Admission, ResolveParams
from asurge.engine.assembly import EngineParts, assemble
from asurge.engine.history import MetricsHistory
from asurge.engine.input_processor import InputProcessor
from asurge.errors import EngineNotRunningError, EngineStateError
from asurge.pipeline import Pacer, Pipeline
from asurge.threads import run_in_thread, run_to_end

EngineState = Literal["new", "starting", "running", "stopped"]


class LifeCycle:
    """An engine from its start to its stop.

    Attributes:
        state: where it is. An engine that has failed is still ``"running"``: see `asurge.pipeline.Pipeline.failure`.
        parts / pipeline / admission: what it is made of, since its start; they can be looked at after its end.
        history: samples of its metrics.
        serving: the task that serves, until it is stopped.
    """

    def __init__(self, history: MetricsHistory) -> None:
        self.history = history
        self.state: EngineState = "new"
        self.parts: EngineParts | None = None
        self.pipeline: Pipeline | None = None
        self.admission: Admission | None = None
        self.serving: asyncio.Task[None] | None = None
        self._stopping = anyio.Lock()

    async def start(self, config: EngineConfig, resolve_params: ResolveParams) -> None:
        """Load the model, compile the steps and start serving.

        Args:
            resolve_params: see `asurge.engine.admission`.

        Raises:
            EngineStateError: it was started before.
            ModelLoadError, ConfigError, CompilationError: it cannot serve this checkpoint with these settings.
        """
        if self.state != "new":
            raise EngineStateError(f"this engine is {self.state}: make a new one to start again")
        self.state = "starting"
        try:
            assembling = partial(assemble, config, from_thread.check_cancelled)
            parts = self.parts = await run_in_thread(assembling, CapacityLimiter(1))
        except BaseException:
            self.state = "stopped"
            raise
        parts.threads.yield_to(threading.get_native_id())
        pipeline = self.pipeline = Pipeline(
            parts.scheduler,
            parts.runner,
            depth=config.pipeline_depth,
            step_timeout_s=config.step_timeout_s,
            pacer=Pacer(mixed_s=config.scheduler.max_mixed_step_s),
            threads=parts.threads.budget.threads,
        )
        self.admission = Admission(pipeline, InputProcessor(config, parts), resolve_params, self.history.wake)
        # The one task outside a caller's task group: engines are often started in one task and stopped in
        # another (aiohttp's runner, lifespan protocols, test fixtures), which a group entered here would forbid.
        self.serving = asyncio.get_running_loop().create_task(pipeline.run(), name="asurge.engine")
        self.serving.add_done_callback(self._ended)
        self.state = "running"

    async def stop(self) -> None:
        """Abort whatever still runs, stop serving and free device memory.

        Waits for the steps in flight, also when it is cancelled. Safe to call twice.

        Raises:
            EngineStateError: it is still starting, in another task; or it runs on another event loop.
        """
        if self.state == "starting":
            raise EngineStateError("the engine is still starting: cancel or await initiate() first")
        if self.admission is not None and self.serving is not None and not self.serving.get_loop().is_closed():
            self.admission.check_loop()
        self.state = "stopped"
        await run_to_end(self._stop)

    async def _stop(self) -> None:
        with anyio.CancelScope(shield=True):
            async with self._stopping:
                if not self.serving or not self.admission or not self.pipeline or not self.parts:
                    return
                self.admission.close()
                if not self.serving.get_loop().is_closed():
                    self.pipeline.abort_all()
                    self.serving.cancel()
                    self.history.close()
                    await asyncio.wait([self.serving])
                self.serving = None
                if not self.pipeline.threads.hang:  # which may not let go of its memory either
                    await to_thread.run_sync(self.parts.runner.shutdown)

    def started(self) -> EngineParts:
        """Return the engine's parts, also after it has stopped.

        Raises:
            EngineNotRunningError: the engine has not started.
        """
        if self.parts is None:
            raise EngineNotRunningError("the engine has not started: use `async with engine`, or await initiate()")
        return self.parts

    def running(self) -> Admission:
        """The way into the running engine, from anywhere.

        Raises:
            EngineNotRunningError: the engine has not started, or has stopped.
            EngineDeadError: it has failed.
        """
        if self.state != "running" or self.admission is None:
            hint = "make a new one" if self.state == "stopped" else "use `async with engine`, or await initiate()"
            raise EngineNotRunningError(f"the engine is not running ({self.state}): {hint}")
        if self.admission.pipeline.failure is not None:
            raise self.admission.pipeline.failure.again()
        return self.admission

    def running_here(self) -> Admission:
        """Return the admission of the running engine, for coroutines on its event loop.

        Raises as `running` does, and:

        Raises:
            EngineStateError: they are not on the loop on which the engine runs, and would wait for ever.
        """
        admission = self.running()
        admission.check_loop()
        return admission

    def check_idle(self) -> None:
        """Check that no request is running.

        Raises:
            EngineStateError: requests are running.
        """
        self.running_here()
        now = self.started().scheduler.statistics()
        if now.running or now.waiting or now.in_flight_steps:
            raise EngineStateError("weights are replaced only while no request runs: wait, or abort what runs")

    def _ended(self, _: asyncio.Task[None]) -> None:
        """The engine's task has ended. Where nobody stopped the engine (an application may cancel all tasks), its requests must not
        wait for ever."""
        if self.state == "running" and self.pipeline is not None:
            self.pipeline.fail(asyncio.CancelledError("its task was cancelled"))
