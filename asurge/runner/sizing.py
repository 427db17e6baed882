"""Compute a runner's limits, page layout and step shapes from the settings, the model and the platform."""

from __future__ import annotations

import dataclasses

from asurge.config import EngineConfig
from asurge.models import DecoderConfig
from asurge.plan import RunnerLimits
from asurge.runner.buckets import ShapeBuckets
from asurge.runner.memory import num_pages
from asurge.runner.page_layout import PageLayout, layout_for
from asurge.runner.step_inputs import TableShape

CPU_TOKEN_BUDGET = 512
ACCELERATOR_TOKEN_BUDGET = 2048

PADDING_QUANTUM = 16
SKIPPING_QUANTUM = 32
"""Tokens of a prefill row: longer ones share more of what attention reads, and waste more where padding is computed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Traits:
    """Properties of the platform and its kernels that decide sizes.

    Attributes:
        on_cpu: whether the platform is a CPU.
        skips_padding: whether rows of padding cost next to nothing, in attention and products.
        loops: whether a step may repeat itself on the device at no extra cost.
        level_bytes: bytes of one page in one layer.
    """

    on_cpu: bool
    skips_padding: bool
    loops: bool
    level_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class RunnerSizes:
    """The sizes of a runner.

    Attributes:
        limits: what the scheduler must respect.
        layout: of the pages.
        buckets: the shapes of its steps.
        tables: page tables of a row.
        pooled_rows: the most prompts of one step that are embedded.
    """

    limits: RunnerLimits
    layout: PageLayout
    buckets: ShapeBuckets
    tables: TableShape
    pooled_rows: int

    @property
    def most_rows(self) -> int:
        """The most rows of a step."""
        return max(shape.rows for shape in self.buckets.shapes)

    @property
    def most_tokens(self) -> int:
        """The most tokens of a step, padding included."""
        return max(shape.tokens for shape in self.buckets.shapes)


def size_runner(
    config: EngineConfig, model: DecoderConfig, max_model_len: int, traits: Traits, kv_bytes: int
) -> RunnerSizes:
    """Decide the sizes of a runner.

    Args:
        kv_bytes: memory for the pages.

    Raises:
        ConfigError: the memory does not hold one full sequence.
    """
    budget = config.max_num_batched_tokens or (CPU_TOKEN_BUDGET if traits.on_cpu else ACCELERATOR_TOKEN_BUDGET)
    quantum = config.min_input_pad or (SKIPPING_QUANTUM if traits.skips_padding else PADDING_QUANTUM)
    limits = RunnerLimits(
        num_pages=0,
        page_size=config.page_size,
        max_num_seqs=config.max_num_seqs,
        # Even when every slot decodes there is room for some of a prompt.
        max_num_batched_tokens=max(budget, quantum + config.max_num_seqs),
        max_model_len=max_model_len,
        prefill_quantum=quantum,
        max_decode_steps=config.max_decode_steps if traits.loops else 1,
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
    )
    layout = layout_for(model.seen, limits)
    limits = dataclasses.replace(limits, windows=layout.windows)
    limits = dataclasses.replace(limits, num_pages=num_pages(limits, kv_bytes, layout.depth * traits.level_bytes))
    return RunnerSizes(
        limits,
        layout,
        ShapeBuckets(limits.max_num_seqs, limits.max_num_batched_tokens, quantum, skips_padding=traits.skips_padding),
        TableShape(len(layout.windows), limits.columns(max_model_len)),
        min(limits.max_num_seqs, limits.max_num_batched_tokens // quantum),
    )
