"""`DeviceRunner`: plans in, tokens out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from asurge.config import EngineConfig
from asurge.errors import ConfigError
from asurge.models import DecoderConfig
from asurge.models.decoder import Decoder
from asurge.ops.attention import AttentionShape, Pages
from asurge.ops.kernels import choose_attention, choose_sampler
from asurge.ops.logits import LogitsProcessor
from asurge.plan import RunnerLimits, StepPlan, StepResult
from asurge.processors import ThreadBudget
from asurge.runner.buckets import StepShape
from asurge.runner.compilation import begin_fetch, compilation_counter, compile_all
from asurge.runner.memory import kv_budget_bytes
from asurge.runner.pooling import Pooler, Sums
from asurge.runner.program import Program
from asurge.runner.prompt_logprobs import PromptScorer, Scores
from asurge.runner.sampling import LogitsSampler, SamplerSpec
from asurge.runner.sizing import Traits, size_runner
from asurge.runner.step import HiddenStates, Leaves, StepSpec, make_step, split_model
from asurge.runner.step_inputs import pack, packed_size
from asurge.runner.team import KernelThreads


class _Dispatched:
    """A step whose tokens are on their way to the host, or still to be sampled."""

    def __init__(
        self,
        runner: DeviceRunner,
        plan: StepPlan,
        sampled: jax.Array,
        sampled_at: npt.NDArray[np.int32],
        hidden: HiddenStates,
        scores: Scores | None,
        sums: Sums | None,
    ) -> None:
        self._runner, self._plan, self._sampled, self._sampled_at = runner, plan, sampled, sampled_at
        self._hidden, self._scores, self._sums = hidden, scores, sums
        self._failed: StepResult | None = None
        self._state_epoch, self._began_s = runner.state_epoch, time.monotonic()

    def sample(self, masks: npt.NDArray[np.uint32] | None = None) -> None:
        try:
            self._sampled = self._runner.sample(self._plan, self._sampled_at, masks, self._hidden.last)
        except Exception as error:  # asked now: the next dispatch may have made fresh state before anybody waits
            self._failed = self._runner.failed(self._plan, error)

    def wait(self) -> StepResult:
        plan, runner = self._plan, self._runner
        if self._failed is not None:
            return self._failed
        try:
            if plan.samples_apart:
                tokens, logprobs = runner.sampler.read(plan, self._sampled)
            else:
                tokens, logprobs = np.asarray(self._sampled)[self._sampled_at, : plan.decode_steps], None
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

    def sample(self, masks: npt.NDArray[np.uint32] | None = None) -> None:
        """Nothing: there is nothing to sample from."""

    def wait(self) -> StepResult:
        return self._result


def _failed(plan: StepPlan, error: Exception, state_epoch: int, *, state_lost: bool) -> StepResult:
    return StepResult(plan, np.zeros((len(plan.rows), plan.decode_steps), np.int32), error, state_epoch, state_lost)


def _delete(arrays: Leaves) -> None:
    for array in arrays:
        array.delete()


def _attention_shape(model: DecoderConfig, config: EngineConfig) -> AttentionShape:
    return AttentionShape(
        model.num_heads,
        model.num_kv_heads,
        model.head_dim,
        config.page_size,
        jnp.dtype(config.dtype),
        score_scale=model.attention_scale,
        score_softcap=model.score_softcap,
        chunked=any(window is not None and window.chunked for window in model.windows),
        int8_pages=config.kv_cache_dtype == "int8",
    )


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
        device, dtype = jax.devices()[0], jnp.dtype(config.dtype)
        attention, self.fallback = choose_attention(
            _attention_shape(model.config, config), config.kernels, device.platform
        )
        on_cpu, skips_padding = device.platform == "cpu", attention.skips_padding and model.skips_padding
        # Inside a loop, XLA:CPU widens bf16 weights to float32, all of them at each dispatch.
        loops = skips_padding or not on_cpu or dtype == jnp.float32
        traits = Traits(on_cpu, skips_padding, loops, attention.page_bytes)
        sizes = size_runner(config, model.config, max_model_len, traits, kv_budget_bytes(config, device))
        self._limits, self._buckets = sizes.limits, sizes.buckets
        self._allocate = partial(attention.allocate, sizes.limits.num_pages, sizes.layout.depth)
        self._leaves, rebuild = split_model(model)
        sample = choose_sampler(config.kernels, device.platform)
        self._spec = StepSpec(
            rebuild,
            attention,
            sizes.layout,
            sizes.tables,
            sizes.most_rows,
            sizes.most_tokens,
            sizes.limits.max_decode_steps,
            sample,
        )
        state, hidden_size = jax.eval_shape(self._fresh_state), model.config.hidden_size
        last = jax.ShapeDtypeStruct((sizes.most_rows, hidden_size), dtype)
        flat = jax.ShapeDtypeStruct((sizes.most_tokens, hidden_size), dtype)
        spec = SamplerSpec(rebuild, model.config.vocab_size, config.max_num_seqs, tuple(logits_processors), sample)
        self.sampler = LogitsSampler(spec, self._leaves, last, state[1])
        self._scorer = PromptScorer(rebuild, model.config.vocab_size, self._leaves, flat)
        self._pooler = Pooler(rebuild, sizes.pooled_rows, self._leaves, flat)
        self._steps = {shape: self._step(shape, *state) for shape in sizes.buckets.shapes}
        self.state_epoch, self._spoilt = 0, -1
        self._done_s = 0.0
        # The system takes seconds to hand out memory for the pages, tracing keeps one core busy: both at once.
        with ThreadPoolExecutor(1, thread_name_prefix="asurge-pages") as pool:
            fresh = pool.submit(self._fresh_state)
            self._compile(check, silent=config.silent_mode)
            self._pages, self._last_token = fresh.result()
        self._warm_up()
        self._compiled = compilation_counter().count

    @property
    def limits(self) -> RunnerLimits:
        return self._limits

    @property
    def compilations(self) -> int:
        """Compilations by XLA in this process since the runner was ready; its own steps need none."""
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
            packed, sampled_at = pack(plan, shape, self._spec.tables, self._limits.max_num_seqs)
            sampled, hidden = self._run(shape, packed)
            scores = self._scorer.dispatch(plan, shape, self._leaves, hidden.flat)
            sums = self._pooler.dispatch(plan, shape, self._leaves, hidden.flat)
        except Exception as error:
            return _Failed(self.failed(plan, error))
        return _Dispatched(self, plan, sampled, sampled_at, hidden, scores, sums)

    def sample(
        self,
        plan: StepPlan,
        sampled_at: npt.NDArray[np.int32],
        masks: npt.NDArray[np.uint32] | None,
        last: jax.Array,
    ) -> jax.Array:
        """Send the sampling of the step dispatched last; see `LogitsSampler.sample`."""
        self._last_token, sampled = self.sampler.sample(plan, sampled_at, masks, self._leaves, last, self._last_token)
        return sampled

    def replace_weights(self, leaves: Leaves) -> Callable[[], None]:
        """Continue with the weights of another model of the same shape (`leaves_of`). Instant; only while no step is in flight.

        Returns:
            What frees those before: blocking.

        Raises:
            ConfigError: they are stored otherwise, for which nothing was compiled; nothing has changed.
        """
        now, then = ([(one.shape, one.dtype) for one in arrays] for arrays in (self._leaves, leaves))
        if now != then:
            raise ConfigError(
                "the other checkpoint's weights are stored in other types than those being served: start an engine for it"
            )
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
        """Make the result of a step that fails while it is sent to the device."""
        return _failed(plan, error, self.state_epoch, state_lost=self.is_state_lost())

    def spoil(self, state_epoch: int) -> None:
        """Note that a step has failed on the device, and with it all that was computed from its outputs.

        Steps that were in flight after it report the same loss; by then there may be fresh state, which they must not discard.
        """
        self._spoilt = max(self._spoilt, state_epoch)

    def is_state_lost(self) -> bool:
        """Whether pages and slots have to be made again.

        All pages are donated together, so one array stands for all: checking each of them would take a tenth of a dispatch.
        """
        lost = self._last_token.is_deleted() or self._pages[-1][-1].is_deleted() or self.sampler.is_lost
        return lost or self._spoilt == self.state_epoch

    def took(self, began_s: float) -> float:
        """Seconds the device spent on a step that has just finished: steps run one after another."""
        now = time.monotonic()
        took, self._done_s = now - max(began_s, self._done_s), now
        return took

    def _run(self, shape: StepShape, packed: npt.NDArray[np.int32]) -> tuple[jax.Array, HiddenStates]:
        step = self._steps[shape]
        self._pages, self._last_token, sampled, hidden = step(self._leaves, self._pages, self._last_token, packed)
        begin_fetch(sampled)
        return sampled, hidden

    def _step(self, shape: StepShape, pages: Pages, last_token: jax.Array) -> Program:
        packed = jax.ShapeDtypeStruct((packed_size(shape, self._spec.tables),), jnp.int32)
        return Program(shape, make_step(self._spec, shape), (self._leaves, pages, last_token, packed), donated=(1, 2))

    def _compile(self, check: Callable[[], None], *, silent: bool) -> None:
        programs = [*self._steps.values(), *self.sampler.programs, self._scorer.program, self._pooler.program]
        lowering = {program.shape: program.lower for program in programs}
        compiled = compile_all(lowering, check, threads=self._threads.budget.threads, silent=silent)
        for program in programs:
            program.use(compiled[program.shape])

    def _free_state(self) -> None:
        for array in (*jax.tree.leaves(self._pages), self._last_token):
            array.delete()
        self.sampler.reset()

    def _fresh_state(self) -> tuple[Pages, jax.Array]:
        return self._allocate(), jnp.zeros((self._limits.max_num_seqs + 1,), jnp.int32)

    def _warm_up(self) -> None:
        """Run each step once on padding alone: first calls allocate and bind what later ones reuse."""
        for shape in self._buckets.shapes:
            packed, _ = pack(StepPlan(0, (), ()), shape, self._spec.tables, self._limits.max_num_seqs)
            sampled, hidden = self._run(shape, packed)
            sampled.block_until_ready()
        assert hidden.flat is not None, "the largest shape takes prefill"
        self._last_token = self.sampler.warm_up(self._leaves, hidden.last, self._last_token)
        self._scorer.warm_up(self._leaves, hidden.flat)
        self._pooler.warm_up(self._leaves, hidden.flat)
