"""vLLM's CPU build, in process, stepped by hand, all cores bound: the fastest of its ways of being used here."""

from __future__ import annotations

import os
from typing import Any

import protocol


class Stepped:
    """`protocol.Stepper` over `LLMEngine`."""

    def __init__(self, engine: Any, params: Any, delta: Any) -> None:
        self._engine, self._params, self._delta = engine, params, delta

    def add(self, name: str, prompt: protocol.Prompt, output_len: int) -> None:
        params = self._params(max_tokens=output_len, temperature=0.0, ignore_eos=True, output_kind=self._delta)
        self._engine.add_request(name, {"prompt_token_ids": prompt}, params)

    def step(self) -> list[tuple[str, int, bool]]:
        return [(out.request_id, len(out.outputs[0].token_ids), out.finished) for out in self._engine.step()]

    def drop(self, name: str) -> None:
        self._engine.abort_request([name])


def start(orders: dict[str, Any]) -> protocol.Stepper:
    """Load and compile."""
    cores = sorted(os.sched_getaffinity(0))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm import EngineArgs, LLMEngine, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    arguments = EngineArgs(
        model=orders["model"],
        dtype=orders["dtype"],
        max_model_len=orders["max_model_len"],
        max_num_seqs=orders["max_num_seqs"],
        disable_log_stats=True,
    )
    return Stepped(LLMEngine.from_engine_args(arguments), SamplingParams, RequestOutputKind.DELTA)


if __name__ == "__main__":
    protocol.answer(start)
