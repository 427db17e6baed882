"""Write the golden checkpoints: ``python -m tests.models.make_golden [CASE ...]`` (needs torch).

Each is a checkpoint folder in Hugging Face's format with ``golden.npz`` beside it: prompt, float32 logits of the last
16 prompt positions, and 64 greedy tokens, all from transformers.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any

import numpy as np
import torch
import transformers

from tests.models.cases import CASES, GOLDEN, NEW_TOKENS, PROMPT_TOKENS, settings

KEPT_POSITIONS = 16


def build(case: str) -> tuple[Any, np.ndarray]:
    """A seeded random model in float32, and a prompt."""
    family, arguments = settings(case)
    torch.manual_seed(zlib.crc32(case.encode()))
    config = getattr(transformers, f"{family}Config")(**arguments)
    model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval().float()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # norms start at one and biases at zero, which would hide mistakes
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.2)
    prompt = torch.randint(0, config.vocab_size, (PROMPT_TOKENS,)).numpy()
    return model, prompt


@torch.no_grad()
def run(model: Any, prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits ``[tokens, vocab]`` of the prompt, and the greedy continuation by whole forward passes."""
    ids = torch.from_numpy(prompt)[None]
    logits = model(ids).logits[0].numpy()
    for _ in range(NEW_TOKENS):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return logits, ids[0, len(prompt) :].numpy()


def main() -> None:
    for case in sys.argv[1:] or CASES:
        model, prompt = build(case)
        logits, tokens = run(model, prompt)
        folder = GOLDEN / case
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        np.savez(folder / "golden.npz", prompt=prompt, logits=logits[-KEPT_POSITIONS:], tokens=tokens)
        print(case, sum(path.stat().st_size for path in folder.iterdir()))


if __name__ == "__main__":
    main()
