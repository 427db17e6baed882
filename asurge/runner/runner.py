"""`DeviceRunner`: plans in, tokens out."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from asurge.config import EngineConfig
from asurge.errors import CompilationError
from asurge.models.decoder import Decoder
from asurge.ops.attention import AttentionShape, choose_attention
from asurge.plan import RunnerLimits, StepPlan, StepResult
from asurge.runner.compilation import compile_all, use_persistent_cache
from asurge.runner.lattice import Lattice, StepShape
from asurge.runner.memory import kv_budget_bytes, num_pages
from asurge.runner.packing import pack, packed_size
from asurge.runner.step import Pages, StepSpec, make_step, split_model

CPU_TOKEN_BUDGET = 512
ACCELERATOR_TOKEN_BUDGET = 2048

PADDING_QUANTUM = 16
SKIPPING_QUANTUM = 32
"""Tokens of a prefill row: longer ones share more of what attention reads, and where padding is computed waste more."""


class _Dispatched:
    """A step whose tokens are on their way to the host."""

    def __init__(
        self,
        plan: StepPlan,
        drawn: jax.Array,
        drawn_at: npt.NDArray[np.int32],
        on_failure: Callable[[], None],
        took: Callable[[float], float],
    ) -> None:
        self._plan, self._drawn, self._drawn_at = plan, drawn, drawn_at
        self._on_failure, self._took, self._began_s = on_failure, took, time.monotonic()

    def wait(self) -> StepResult:
        try:
            tokens = np.asarray(self._drawn)[self._drawn_at, : self._plan.draws]
        except Exception as error:  # the device reports a failed step when its result is read
            self._on_failure()
            return _failed(self._plan, error, state_lost=True)
        return StepResult(self._plan, tokens, device_time_s=self._took(self._began_s))


class _Failed:
    """A step that did not reach the device."""

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def wait(self) -> StepResult:
        return self._result


def _failed(plan: StepPlan, error: Exception, *, state_lost: bool) -> StepResult:
    return StepResult(plan, np.zeros((len(plan.rows), plan.draws), np.int32), error=error, state_lost=state_lost)


class DeviceRunner:
    """`asurge.plan.Runner` over JAX: device-resident slots and pages, one compiled step per shape.

    Raises:
        ConfigError: the KV budget does not hold one full sequence.
        CompilationError: a step does not compile.
    """

    def __init__(self, model: Decoder, config: EngineConfig, *, max_model_len: int) -> None:
        use_persistent_cache(config.compilation_cache_dir)
        self._device = jax.devices()[0]
        shape, dtype = model.config, jnp.dtype(config.dtype)
        attention, self.fallback = choose_attention(
            AttentionShape(shape.num_heads, shape.num_kv_heads, shape.head_dim, config.page_size, dtype),
            config.kernels,
            self._device.platform,
        )
        bytes_per_page = shape.num_layers * attention.page_bytes
        pages = num_pages(config, kv_budget_bytes(config, self._device), bytes_per_page, max_model_len)
        budget = config.max_num_batched_tokens or (
            CPU_TOKEN_BUDGET if self._device.platform == "cpu" else ACCELERATOR_TOKEN_BUDGET
        )
        skips_padding = attention.skips_padding and model.skips_padding
        # Inside a loop XLA:CPU widens bf16 weights to float32, all of them at each dispatch.
        loops = skips_padding or self._device.platform != "cpu" or dtype == jnp.float32
        max_draws = config.max_decode_steps if loops else 1
        quantum = config.min_input_pad or (SKIPPING_QUANTUM if skips_padding else PADDING_QUANTUM)
        self._limits = RunnerLimits(
            num_pages=pages,
            page_size=config.page_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=max(budget, quantum),
            max_model_len=max_model_len,
            prefill_quantum=quantum,
            max_draws=max_draws,
        )
        self._allocate = partial(attention.allocate, pages)
        self._layers = shape.num_layers
        self._leaves, rebuild = split_model(model)
        self._columns = -(-max_model_len // config.page_size)
        self._spec = StepSpec(rebuild, attention, self._columns, max_draws)
        self._lattice = Lattice(
            config.max_num_seqs, self._limits.max_num_batched_tokens, quantum, skips_padding=skips_padding
        )
        self._pages, self._last_token = self._fresh_state()
        self._generation, self._spoilt = 0, -1
        self._done_s = 0.0
        self._steps = compile_all(self._lattice.shapes, self._lower, silent=config.silent_mode)
        self._warm_up()

    @property
    def limits(self) -> RunnerLimits:
        return self._limits

    @property
    def shapes(self) -> tuple[StepShape, ...]:
        """All shapes a step can have, cheapest first."""
        return self._lattice.shapes

    def dispatch(self, plan: StepPlan) -> _Dispatched | _Failed:
        """Send a step to the device; its result is read by the handle. Never raises for a failing step."""
        try:
            if self._state_is_lost():
                self._pages, self._last_token = self._fresh_state()
                self._generation += 1
            shape = self._lattice.pick(plan)
            packed, drawn_at = pack(plan, shape, self._columns, self._limits.max_num_seqs)
            drawn = self._run(shape, packed)
        except Exception as error:
            return _Failed(_failed(plan, error, state_lost=self._state_is_lost()))
        return _Dispatched(plan, drawn, drawn_at, partial(self._spoil, self._generation), self._took)

    def shutdown(self) -> None:
        """Free weights and pages on the device."""
        for array in (*self._leaves, *jax.tree.leaves(self._pages), self._last_token):
            array.delete()
        self._leaves, self._steps = (), {}

    def _run(self, shape: StepShape, packed: npt.NDArray[np.int32]) -> jax.Array:
        step = self._steps.get(shape)
        if step is None:
            raise CompilationError(f"the step {shape} was not compiled at start-up")
        self._pages, self._last_token, drawn = step(self._leaves, self._pages, self._last_token, packed)
        drawn.copy_to_host_async()
        return drawn

    def _took(self, began_s: float) -> float:
        """Seconds the device had for a step that is done now: steps run one after another."""
        now = time.monotonic()
        took, self._done_s = now - max(began_s, self._done_s), now
        return took

    def _lower(self, shape: StepShape) -> jax.stages.Lowered:
        function = jax.jit(make_step(self._spec, shape), donate_argnums=(1, 2))
        packed = jax.ShapeDtypeStruct((packed_size(shape, self._columns),), jnp.int32)
        return function.lower(self._leaves, self._pages, self._last_token, packed)

    def _fresh_state(self) -> tuple[Pages, jax.Array]:
        pages = tuple(self._allocate() for _ in range(self._layers))
        return pages, jnp.zeros((self._limits.max_num_seqs + 1,), jnp.int32)

    def _spoil(self, generation: int) -> None:
        """A step has failed on the device, and all that was computed from its outputs fails too. Steps that were in
        flight behind it report the same loss; by then there may be fresh state, which they must not take away."""
        self._spoilt = max(self._spoilt, generation)

    def _state_is_lost(self) -> bool:
        if self._spoilt == self._generation or self._last_token.is_deleted():
            return True
        return any(array.is_deleted() for array in jax.tree.leaves(self._pages))

    def _warm_up(self) -> None:
        """Run each step once on padding alone: first calls allocate and bind what later ones reuse."""
        for shape in self._lattice.shapes:
            packed, _ = pack(StepPlan(0, (), ()), shape, self._columns, self._limits.max_num_seqs)
            self._run(shape, packed).block_until_ready()
