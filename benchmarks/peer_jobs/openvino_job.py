"""OpenVINO GenAI's continuous batching. The model folder is an export: see `benchmarks.peers`."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
import protocol


class Stepped:
    """`protocol.Stepper` over `ContinuousBatchingPipeline`."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._open: dict[str, Any] = {}
        self._number = 0

    def add(self, name: str, prompt: protocol.Prompt, output_len: int) -> None:
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = output_len, True, False
        ids = openvino.Tensor(np.asarray([prompt], np.int64))
        self._number += 1
        self._open[name] = self._pipeline.add_request(self._number, ids, config)

    def step(self) -> list[tuple[str, int, bool]]:
        self._pipeline.step()
        news = []
        for name, handle in list(self._open.items()):
            tokens = 0
            while handle.can_read():
                tokens += sum(len(output.generated_ids) for output in handle.read().values())
            over = handle.get_status() != genai.GenerationStatus.RUNNING
            if over:
                del self._open[name]
            if tokens or over:
                news.append((name, tokens, over))
        return news

    def drop(self, name: str) -> None:
        self._open.pop(name).stop()


def start(orders: dict[str, Any]) -> protocol.Stepper:
    """Load and compile."""
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1  # GiB
    scheduler.max_num_seqs = orders["max_num_seqs"]
    scheduler.enable_prefix_caching = True
    properties = {"INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[orders["dtype"]]}
    return Stepped(genai.ContinuousBatchingPipeline(orders["model"], scheduler, "CPU", properties))


protocol.answer(start)
