"""`DeviceRunner`: plans in, tokens out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from asurge.config import EngineConfig
from asurge.errors import CompilationError
from asurge.models.decoder import Decoder
from asurge.ops.attention import AttentionShape, Pages, choose_attention
from asurge.ops.logits import LogitsProcessor
from asurge.ops.sampling import choose_sampler
from asurge.plan import RunnerLimits, StepPlan, StepResult
from asurge.processors import ThreadBudget
from asurge.runner.buckets import ShapeBuckets, StepShape
from asurge.runner.compilation import begin_fetch, compilation_counter, compile_all
from asurge.runner.memory import kv_budget_bytes, num_pages
from asurge.runner.page_layout import layout_for
from asurge.runner.pooling import Pooler, Sums
from asurge.runner.prompt_logprobs import Scorer, Scores
from asurge.runner.sampling import Drawer, DrawSpec
from asurge.runner.step import HiddenStates, Leaves, StepSpec, make_step, split_model
from asurge.runner.step_inputs import TableShape, pack, packed_size
from asurge.runner.team import KernelThreads

CPU_TOKEN_BUDGET = 512
ACCELERATOR_TOKEN_BUDGET = 2048

PADDING_QUANTUM = 16
SKIPPING_QUANTUM = 32
"""Tokens of a prefill row: longer ones share more of what attention reads, and waste more where padding is computed."""


class _Dispatched:
    """A step whose tokens are on their way to the host, or still to be drawn."""

    def __init__(
        self,
        runner: DeviceRunner,
        plan: StepPlan,
        drawn: jax.Array,
        drawn_at: npt.NDArray[np.int32],
        hidden: HiddenStates,
        scores: Scores | None,
        sums: Sums | None,
    ) -> None:
        self._runner, self._plan, self._drawn, self._drawn_at = runner, plan, drawn, drawn_at
        self._hidden, self._scores, self._sums = hidden, scores, sums
        self._failed: StepResult | None = None
        self._state_epoch, self._began_s = runner.state_epoch, time.monotonic()

    def draw(self, masks: npt.NDArray[np.uint32] | None = None) -> None:
        try:
            self._drawn = self._runner.draw(self._plan, self._drawn_at, masks, self._hidden.last)
        except Exception as error:  # asked now: the next dispatch may have made fresh state before anybody waits
            self._failed = self._runner.failed(self._plan, error)

    def wait(self) -> StepResult:
        plan, runner = self._plan, self._runner
        if self._failed is not None:
            return self._failed
        try:
            if plan.draws_apart:
                tokens, logprobs = runner.drawer.read(plan, self._drawn)
            else:
                tokens, logprobs = np.asarray(self._drawn)[self._drawn_at, : plan.draws], None
            scores = {} if self._scores is None else self._scores.read()
            pooled = {} if self._sums is None else self._sums.read()
        except Exception as error:  # the device reports a failed step when its result is read
            runner.spoil(self._state_epoch)
            return _failed(plan, error, self._state_epoch, state_lost=True)
        took_s = runner.took(self._began_s)
        return StepResult(
            plan,
            tokens,
            state_epoch=self._state_epoch,
            device_time_s=took_s,
            logprobs=logprobs,
            prompt_logprobs=scores,
            pooled=pooled,
        )


class _Failed:
    """A step that did not reach the device."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def draw(self, masks: npt.NDArray[np.uint32] | None = None) -> None:
        """There is nothing to draw from."""

    def wait(self) -> StepResult:
        return self._result


def _failed(plan: StepPlan, error: Exception, state_epoch: int, *, state_lost: bool) -> StepResult:
    return StepResult(plan, np.zeros((len(plan.rows), plan.draws), np.int32), error, state_epoch, state_lost)


def _delete(arrays: Leaves) -> None:
    for array in arrays:
        array.delete()


class DeviceRunner:
    """`asurge.plan.Runner` over JAX: device-resident slots and pages, one compiled step per shape.

    Args:
        threads: the engine's part in the kernels' team, up to date before each step until `shutdown`.
        check: called now and then while this compiles; ends it if it raises.

    Raises:
        ConfigError: the KV budget does not hold one full sequence.
        CompilationError: a step does not compile.
    """

    def __init__(
        self,
        model: Decoder,
        config: EngineConfig,
        *,
        max_model_len: int,
        logits_processors: Sequence[LogitsProcessor] = (),
        threads: KernelThreads | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._threads = threads or KernelThreads(ThreadBudget(config.kernel_threads), config.kernels)
        self._device = jax.devices()[0]
        shape, dtype = model.config, jnp.dtype(config.dtype)
        attention, self.fallback = choose_attention(
            AttentionShape(
                shape.num_heads,
                shape.num_kv_heads,
                shape.head_dim,
                config.page_size,
                dtype,
                score_scale=shape.attention_scale,
                score_softcap=shape.score_softcap,
                chunked=any(window is not None and window.chunked for window in shape.windows),
                int8_pages=config.kv_cache_dtype == "int8",
            ),
            config.kernels,
            self._device.platform,
        )
        budget = config.max_num_batched_tokens or (
            CPU_TOKEN_BUDGET if self._device.platform == "cpu" else ACCELERATOR_TOKEN_BUDGET
        )
        skips_padding = attention.skips_padding and model.skips_padding
        # Inside a loop, XLA:CPU widens bf16 weights to float32, all of them at each dispatch.
        loops = skips_padding or self._device.platform != "cpu" or dtype == jnp.float32
        max_draws = config.max_decode_steps if loops else 1
        quantum = config.min_input_pad or (SKIPPING_QUANTUM if skips_padding else PADDING_QUANTUM)
        limits = RunnerLimits(
            num_pages=0,
            page_size=config.page_size,
            max_num_seqs=config.max_num_seqs,
            # Even when every slot decodes there is room for some of a prompt.
            max_num_batched_tokens=max(budget, quantum + config.max_num_seqs),
            max_model_len=max_model_len,
            prefill_quantum=quantum,
            max_draws=max_draws,
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
        )
        layout = layout_for(shape.seen, limits)
        limits = dataclasses.replace(limits, windows=layout.windows)
        pages = num_pages(limits, kv_budget_bytes(config, self._device), layout.depth * attention.page_bytes)
        self._limits = dataclasses.replace(limits, num_pages=pages)
        self._allocate = partial(attention.allocate, pages, layout.depth)
        self._leaves, rebuild = split_model(model)
        self._buckets = ShapeBuckets(
            config.max_num_seqs, self._limits.max_num_batched_tokens, quantum, skips_padding=skips_padding
        )
        most_rows = max(one.rows for one in self._buckets.shapes)
        most_tokens = max(one.tokens for one in self._buckets.shapes)
        tables = TableShape(len(layout.windows), limits.columns(max_model_len))
        sample = choose_sampler(config.kernels, self._device.platform)
        self._spec = StepSpec(rebuild, attention, layout, tables, most_rows, most_tokens, max_draws, sample)
        processors = tuple(logits_processors)
        self.drawer = Drawer(DrawSpec(rebuild, shape.vocab_size, config.max_num_seqs, processors, sample))
        self._scorer = Scorer(rebuild, shape.vocab_size)
        chunks = self._limits.max_num_batched_tokens // quantum
        self._pooler = Pooler(rebuild, most_tokens, min(config.max_num_seqs, chunks))
        self.state_epoch, self._spoilt = 0, -1
        self._done_s = 0.0
        # The system takes seconds to hand out memory for the pages, tracing keeps one core busy: both at once.
        with ThreadPoolExecutor(1, thread_name_prefix="asurge-pages") as pool:
            state = pool.submit(self._fresh_state)
            self._compile(shape.hidden_size, dtype, check, silent=config.silent_mode)
            self._pages, self._last_token = state.result()
        self._warm_up()
        self._compiled = compilation_counter().count

    @property
    def limits(self) -> RunnerLimits:
        return self._limits

    @property
    def compilations(self) -> int:
        """What XLA has compiled in this process since the runner was ready; its own steps need none."""
        return compilation_counter().count - self._compiled

    @property
    def shapes(self) -> tuple[StepShape, ...]:
        """All shapes a step can have, cheapest first."""
        return self._buckets.shapes

    def dispatch(self, plan: StepPlan) -> _Dispatched | _Failed:
        """Send a step to the device; its result is read by the handle. Never raises for a failing step."""
        try:
            self._threads.refresh()
            if self.is_state_lost():
                self._free_state()  # first: accelerators have no room for both
                self._pages, self._last_token = self._fresh_state()
                self.state_epoch += 1
            shape = self._buckets.pick(plan)
            packed, drawn_at = pack(plan, shape, self._spec.tables, self._limits.max_num_seqs)
            drawn, hidden = self._run(shape, packed)
            scores = self._scorer.dispatch(plan, shape, self._leaves, hidden.flat)
            sums = self._pooler.dispatch(plan, shape, self._leaves, hidden.flat)
        except Exception as error:
            return _Failed(self.failed(plan, error))
        return _Dispatched(self, plan, drawn, drawn_at, hidden, scores, sums)

    def draw(
        self,
        plan: StepPlan,
        drawn_at: npt.NDArray[np.int32],
        masks: npt.NDArray[np.uint32] | None,
        last: jax.Array,
    ) -> jax.Array:
        """Send the draws of the step dispatched last; see `Drawer.draw`."""
        self._last_token, told = self.drawer.draw(plan, drawn_at, masks, self._leaves, last, self._last_token)
        return told

    def replace_weights(self, leaves: Leaves) -> Callable[[], None]:
        """Continue with the weights of another model of the same shape (`leaves_of`). Instant; only while no step is in flight.

        Returns:
            What frees those before: blocking.
        """
        before, self._leaves = self._leaves, leaves
        return partial(_delete, before)

    def shutdown(self) -> None:
        """Free weights and pages on the device."""
        _delete(self._leaves)
        self._free_state()
        self._leaves = ()
        self._steps.clear()
        self._threads.leave()

    def failed(self, plan: StepPlan, error: Exception) -> StepResult:
        """What becomes of a step that fails while it is sent to the device."""
        return _failed(plan, error, self.state_epoch, state_lost=self.is_state_lost())

    def spoil(self, state_epoch: int) -> None:
        """A step has failed on the device, and all that was computed from its outputs fails too. Steps that were in flight after
        it report the same loss; by then there may be fresh state, which they must not discard."""
        self._spoilt = max(self._spoilt, state_epoch)

    def is_state_lost(self) -> bool:
        """Whether pages and slots have to be made again. All pages are donated together, so one stands for all: to ask each
        of them would take a tenth of a dispatch."""
        lost = self._last_token.is_deleted() or self._pages[-1][-1].is_deleted() or self.drawer.is_lost
        return lost or self._spoilt == self.state_epoch

    def took(self, began_s: float) -> float:
        """Seconds the device spent on a step that has just finished: steps run one after another."""
        now = time.monotonic()
        took, self._done_s = now - max(began_s, self._done_s), now
        return took

    def _run(self, shape: StepShape, packed: npt.NDArray[np.int32]) -> tuple[jax.Array, HiddenStates]:
        step = self._steps.get(shape)
        if step is None:
            raise CompilationError(f"the step {shape} was not compiled at start-up")
        self._pages, self._last_token, drawn, hidden = step(self._leaves, self._pages, self._last_token, packed)
        begin_fetch(drawn)
        return drawn, hidden

    def _compile(self, hidden_size: int, dtype: jnp.dtype, check: Callable[[], None], *, silent: bool) -> None:
        last = jax.ShapeDtypeStruct((self._spec.most_rows, hidden_size), dtype)
        flat = jax.ShapeDtypeStruct((self._spec.most_tokens, hidden_size), dtype)
        state = jax.eval_shape(self._fresh_state)
        steps = {shape: partial(self._lower, shape, *state) for shape in self._buckets.shapes}
        draws = self.drawer.programs(self._leaves, last, state[1])
        scores, sums = self._scorer.programs(self._leaves, flat), self._pooler.programs(self._leaves, flat)
        compiled = compile_all(
            {**steps, **draws, **scores, **sums}, check, threads=self._threads.budget.threads, silent=silent
        )
        self._steps = {shape: compiled[shape] for shape in steps}
        self.drawer.use(compiled)
        self._scorer.use(compiled)
        self._pooler.use(compiled)

    def _lower(self, shape: StepShape, pages: Pages, last_token: jax.Array) -> jax.stages.Lowered:
        function = jax.jit(make_step(self._spec, shape), donate_argnums=(1, 2))
        packed = jax.ShapeDtypeStruct((packed_size(shape, self._spec.tables),), jnp.int32)
        return function.lower(self._leaves, pages, last_token, packed)

    def _free_state(self) -> None:
        for array in (*jax.tree.leaves(self._pages), self._last_token):
            array.delete()
        self.drawer.reset()

    def _fresh_state(self) -> tuple[Pages, jax.Array]:
        return self._allocate(), jnp.zeros((self._limits.max_num_seqs + 1,), jnp.int32)

    def _warm_up(self) -> None:
        """Run each step once on padding alone: first calls allocate and bind what later ones reuse."""
        for shape in self._buckets.shapes:
            packed, _ = pack(StepPlan(0, (), ()), shape, self._spec.tables, self._limits.max_num_seqs)
            drawn, hidden = self._run(shape, packed)
            drawn.block_until_ready()
        assert hidden.flat is not None, "the largest shape takes prefill"
        self._last_token = self.drawer.warm_up(self._leaves, hidden.last, self._last_token)
        self._scorer.warm_up(self._leaves, hidden.flat)
        self._pooler.warm_up(self._leaves, hidden.flat)
