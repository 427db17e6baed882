"""The engine's settings: frozen, checked once, with errors that say what to change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict, get_args

from asurge.errors import ConfigError

TruncateMode = Literal["left", "right", "middle"]
Kernels = Literal["auto", "native", "pallas", "xla"]
"""Which kernels run: a platform's own where they can, those named, or none."""

Quantization = Literal["int8", "int4"]
"""What weights become that are floating-point numbers in their checkpoint."""

DTYPES = ("bfloat16", "float32", "float16")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Settings of the scheduler: the order of requests, and how they share the budget of a step (`docs/scheduling.md`).

    Attributes:
        policy: ``"fcfs"``: in order of arrival; ``"priority"``: lower numbers first, and they take slots and pages from
            running requests with higher ones.
        cache_aware: of a tenant's first waiting requests, prefer the one with most of its prompt in the prefix cache.
        max_overtakes: how many later requests may be preferred to one that came before them.
        tenant_weights: shares of tenants that wait at the same time; 1 for those not named.
        long_prefill_token_threshold: the most prompt tokens that one request may have computed in a step while others wait or
            have prompts to be computed; None: no such limit.
        max_mixed_step_s: the longest step, in seconds, that computes prompts while somebody reads the tokens of other requests
            as they come; or 1.5 times a step without prompts, if that is longer. None: no limit. There is none while all answers
            are taken only when finished (`Engine.generate`, ``output_kind="final"``, HTTP without ``stream``).

    Raises:
        ConfigError: a value is out of range.
    """

    policy: Literal["fcfs", "priority"] = "fcfs"
    cache_aware: bool = False
    max_overtakes: int = 8
    tenant_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    long_prefill_token_threshold: int | None = None
    max_mixed_step_s: float | None = 0.045

    def __post_init__(self) -> None:
        _check_types(self)
        if self.policy not in ("fcfs", "priority"):
            raise ConfigError(f"policy={self.policy!r} must be 'fcfs' or 'priority'")
        _at_least("max_overtakes", self.max_overtakes, 0)
        if self.long_prefill_token_threshold is not None:
            _at_least("long_prefill_token_threshold", self.long_prefill_token_threshold, 1)
        if self.max_mixed_step_s is not None:
            _positive("max_mixed_step_s", self.max_mixed_step_s)
        for tenant, weight in self.tenant_weights.items():
            _positive(f"tenant_weights[{tenant!r}]", weight)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Settings of the prefix cache.

    Attributes:
        enable_prefix_caching: share pages between prompts with the same beginning.
        prefix_cache_capacity: how many unused pages are kept for later prompts; None: all that are not needed.

    Raises:
        ConfigError: a value is out of range.
    """

    enable_prefix_caching: bool = True
    prefix_cache_capacity: int | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        if self.prefix_cache_capacity is not None:
            _at_least("prefix_cache_capacity", self.prefix_cache_capacity, 0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of an engine; `asurge.Engine` takes the same names.

    Attributes:
        model: ``"demo"``, a checkpoint folder, a GGUF file, a Hugging Face repository (``owner/name``, or ``owner/name:Q4_K_M`` for one of
            its GGUF files), or ``package:name`` for an installed package that holds one.
        tokenizer: folder or repository of the tokenizer; default: the model's.
        name: what the model is served as; default: ``model``.
        dtype: of weights, activations and KV pages, unless the next two say otherwise.
        quantization: ``"int8"`` for 8-bit weights (per output channel) and activations (per token, dynamic); ``"int4"`` for 4-bit
            weights (a scale and a minimum for each 32; the head in 8 bits) and 8-bit activations (a scale for each 16), in the
            CPU kernels; None: weights as they are in the checkpoint, of which those of a GGUF file may be quantised.
        kv_cache_dtype: ``"int8"`` keeps keys and values in 8 bits, with a scale for each head of each token: pages take half the
            memory, and half the time to read. ``"auto"``: in ``dtype``.
        kernels: ``"native"`` for the CPU kernels, ``"pallas"`` for those of GPUs and TPUs, ``"xla"`` for plain JAX,
            ``"auto"`` for the best that can serve the model.
        max_model_len: longest sequence in tokens, prompt and answer; None: the model's, at most 8192.
        max_num_seqs: sequences running at once (device slots).
        max_num_batched_tokens: token budget of one step; None chooses by platform. It is raised where it would not hold one token
            of each sequence and ``min_input_pad`` tokens of a prompt beside them.
        min_input_pad: prefill chunks are padded to a multiple of this many tokens; None chooses by kernels.
        page_size: tokens in a KV page.
        hbm_utilization: share of accelerator memory that weights and KV pages may take.
        kv_cache_bytes: KV budget in bytes; None: from hbm_utilization, or a quarter of free memory (at most
            1 GiB) on CPU, and never more than all slots at full length can use.
        enable_prefix_caching: share pages between prompts with the same beginning; False overrides ``cache``.
        scheduler: which request comes next, and how a step is shared.
        cache: what is kept of finished work.
        reserve_tokens: tokens of the context kept for the answer when a prompt is cut.
        auto_truncate_prompt / truncate_mode: cut prompts that do not fit, and where.
        decode_truncated_prompt: the text reported for a prompt that was cut is that of the tokens that are left.
        auto_cap_new_tokens: lower max_tokens to what fits the context.
        prefer_preserve_prompt: lower max_tokens before cutting the prompt.
        strict_context: refuse instead of cutting or capping.
        max_queued_requests: admission bound; beyond it requests are refused at once.
        pipeline_depth: steps in flight; 2 overlaps the host with the device, 1 does not.
        max_decode_steps: decode steps that one dispatch may run when nothing waits, and they are short or nobody reads tokens as
            they come; 1 never groups.
        step_timeout_s: a step that takes longer means a hung device: the engine declares itself dead.
        extra_eos_token_ids: more tokens that end a text.
        logits_processors: by name, pure JAX functions of one row's logits, float32 ``[vocab]``, and a scalar that the request
            gives, which return the logits to sample from. They are compiled into the step.
        sampling_params_callback: sees the parameters of each request before it is admitted, and may return others.
        kernel_threads: how many threads the CPU kernels use, and how many compile steps and fill masks; None: what `ASURGE_THREADS`
            says, else as many as the process has processors, by affinity and by the quotas of its control groups. More than
            there are is lowered to that, with a warning. Engines of one process share one team, as large as the largest asks for.
        kernel_nice: niceness of the threads of the CPU kernels, 0 to 19 (``nice(1)``): other processes go first. The process has one
            team of them, so this holds for all its engines, and only privileged processes take it back. None: as the process.
        compilation_cache_dir: JAX's persistent cache; None: the user's cache folder; "" turns it off.
        silent_mode: no progress bars.

    Raises:
        ConfigError: a value is out of range.
    """

    model: str = "demo"
    tokenizer: str | None = None
    name: str | None = None
    dtype: str = "bfloat16"
    quantization: Quantization | None = None
    kv_cache_dtype: Literal["auto", "int8"] = "auto"
    kernels: Kernels = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    min_input_pad: int | None = None
    page_size: int = 64
    hbm_utilization: float = 0.85
    kv_cache_bytes: int | None = None
    enable_prefix_caching: bool = True
    scheduler: SchedulerConfig = dataclasses.field(default_factory=SchedulerConfig)
    cache: CacheConfig = dataclasses.field(default_factory=CacheConfig)
    reserve_tokens: int | None = None
    auto_truncate_prompt: bool = True
    truncate_mode: TruncateMode = "left"
    decode_truncated_prompt: bool = True
    auto_cap_new_tokens: bool = True
    prefer_preserve_prompt: bool = True
    strict_context: bool = False
    max_queued_requests: int = 4096
    pipeline_depth: int = 2
    max_decode_steps: int = 8
    step_timeout_s: float = 300.0
    extra_eos_token_ids: tuple[int, ...] = ()
    logits_processors: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    sampling_params_callback: Callable[..., Any] | None = None
    kernel_threads: int | None = None
    kernel_nice: int | None = None
    compilation_cache_dir: str | None = None
    silent_mode: bool = False

    def __post_init__(self) -> None:
        for field, kind in (("scheduler", SchedulerConfig), ("cache", CacheConfig)):
            object.__setattr__(self, field, _made(field, kind, getattr(self, field)))
        ids: Any = self.extra_eos_token_ids
        object.__setattr__(self, "extra_eos_token_ids", tuple(ids) if isinstance(ids, list) else ids)  # JSON has lists
        _check_types(self)
        if not isinstance(self.model, str) or not self.model:
            raise ConfigError(
                f"model={self.model!r} must be 'demo', a folder or a repository name (an EngineConfig goes to Engine.from_config)"
            )
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype={self.dtype!r} must be one of {', '.join(DTYPES)}")
        if self.quantization not in (None, *get_args(Quantization)):
            raise ConfigError(f"quantization={self.quantization!r} must be 'int8', 'int4' or None")
        if self.kv_cache_dtype not in ("auto", "int8"):
            raise ConfigError(f"kv_cache_dtype={self.kv_cache_dtype!r} must be 'auto' or 'int8'")
        if self.kernels not in get_args(Kernels):
            *others, last = map(repr, get_args(Kernels))
            raise ConfigError(f"kernels={self.kernels!r} must be {', '.join(others)} or {last}")
        for field in ("max_model_len", "max_num_batched_tokens", "min_input_pad", "kv_cache_bytes", "kernel_threads"):
            value = getattr(self, field)
            if value is not None:
                _at_least(field, value, 1)
        for field in ("max_num_seqs", "page_size", "max_queued_requests", "pipeline_depth", "max_decode_steps"):
            _at_least(field, getattr(self, field), 1)
        for field in ("page_size", "min_input_pad"):
            value = getattr(self, field)
            if value is not None and value & (value - 1):
                raise ConfigError(f"{field}={value} must be a power of two")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ConfigError(f"max_model_len={self.max_model_len} leaves no room for an answer: use at least 2")
        if self.kernel_nice is not None:
            _at_least("kernel_nice", self.kernel_nice, 0)
            if self.kernel_nice > 19:
                raise ConfigError(f"kernel_nice={self.kernel_nice} must be at most 19, the nicest")
        _positive("hbm_utilization", self.hbm_utilization)
        if self.hbm_utilization > 1.0:
            raise ConfigError(f"hbm_utilization={self.hbm_utilization!r} must be in (0, 1]")
        _positive("step_timeout_s", self.step_timeout_s)
        if self.reserve_tokens is not None:
            _at_least("reserve_tokens", self.reserve_tokens, 0)
        if self.truncate_mode not in ("left", "right", "middle"):
            raise ConfigError(f"truncate_mode={self.truncate_mode!r} must be 'left', 'right' or 'middle'")

    def settings(self) -> dict[str, Any]:
        """All settings by name, as `asurge.Engine` takes them."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class EngineSettings(TypedDict, total=False):
    """The settings of `EngineConfig` but the model, as keyword arguments of `asurge.Engine`: for editors and type checkers.

    Those of ``scheduler`` and ``cache`` may be mappings, as they come from a command line.
    """

    tokenizer: str | None
    name: str | None
    dtype: str
    quantization: Quantization | None
    kv_cache_dtype: Literal["auto", "int8"]
    kernels: Kernels
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int | None
    min_input_pad: int | None
    page_size: int
    hbm_utilization: float
    kv_cache_bytes: int | None
    enable_prefix_caching: bool
    scheduler: SchedulerConfig | Mapping[str, Any]
    cache: CacheConfig | Mapping[str, Any]
    reserve_tokens: int | None
    auto_truncate_prompt: bool
    truncate_mode: TruncateMode
    decode_truncated_prompt: bool
    auto_cap_new_tokens: bool
    prefer_preserve_prompt: bool
    strict_context: bool
    max_queued_requests: int
    pipeline_depth: int
    max_decode_steps: int
    step_timeout_s: float
    extra_eos_token_ids: tuple[int, ...]
    logits_processors: Mapping[str, Callable[..., Any]]
    sampling_params_callback: Callable[..., Any] | None
    kernel_threads: int | None
    kernel_nice: int | None
    compilation_cache_dir: str | None
    silent_mode: bool


def _made(field: str, kind: type[Any], given: Any) -> Any:
    """Settings as ``kind``, also where they were given as a mapping, as from a command line."""
    if isinstance(given, kind):
        return given
    known = {one.name for one in dataclasses.fields(kind)}
    if not isinstance(given, Mapping) or given.keys() - known:
        raise ConfigError(f"{field}={given!r} must be {kind.__name__}, or a mapping of {', '.join(sorted(known))}")
    return kind(**given)


_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("True or False", lambda value: isinstance(value, bool)),
    "str | None": ("text or None", lambda value: value is None or isinstance(value, str)),
    "tuple[int, ...]": ("token ids", lambda value: isinstance(value, tuple) and all(type(one) is int for one in value)),
    "Mapping[str, float]": ("a mapping", lambda value: isinstance(value, Mapping)),
    "Mapping[str, Callable[..., Any]]": (
        "a mapping of functions",
        lambda value: isinstance(value, Mapping) and all(callable(one) for one in value.values()),
    ),
    "Callable[..., Any] | None": ("a function or None", lambda value: value is None or callable(value)),
}
"""Type checks by annotation; annotations not listed are range-checked in ``__post_init__``."""


def _check_types(config: Any) -> None:
    for field in dataclasses.fields(config):
        wanted, fits = _TYPES.get(str(field.type), ("", lambda value: True))
        if not fits(value := getattr(config, field.name)):
            raise ConfigError(f"{field.name}={value!r} must be {wanted}")


def _at_least(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name}={value!r} must be an integer of at least {low}")


def _positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(f"{name}={value!r} must be a positive number")
