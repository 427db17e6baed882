"""transformers' `generate`, in padded batches."""

from __future__ import annotations

from typing import Any

import protocol
import torch
from transformers import AutoModelForCausalLM
from transformers.generation import StoppingCriteria, StoppingCriteriaList


def start(orders: dict[str, Any]) -> protocol.Batch:
    """Load the model."""
    model = AutoModelForCausalLM.from_pretrained(orders["model"], dtype=getattr(torch, orders["dtype"]))
    model.eval()
    model.generation_config.eos_token_id = None

    class Note(StoppingCriteria):  # called after each token
        def __init__(self, note: Any) -> None:
            self.note = note

        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            self.note()
            return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    def complete(prompts: list[protocol.Prompt], output_len: int, note: Any) -> None:
        ids = torch.tensor(prompts)  # the prompts of a workload are equally long: no row needs padding
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=output_len,
                min_new_tokens=output_len,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([Note(note)]),
            )

    return complete


protocol.answer(start)
