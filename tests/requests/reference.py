"""Reference generation, token by token, from whole forward passes in float64: slow, plain, and without the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asurge.models import load_model
from tests.models.forward import forward

Logits = npt.NDArray[np.float64]
Change = Callable[[Logits, list[int], list[int]], Logits]
"""Logits, prompt and answer so far -> logits to choose from."""

LENGTH = 128


class Reference:
    """The tiny model, one forward pass at a time."""

    def __init__(self, folder: Path) -> None:
        model = load_model(folder, dtype="float32", progress=False)
        self.vocab_size = model.config.vocab_size
        self._run = forward(model)

    def logits(self, tokens: list[int]) -> Logits:
        """``[tokens, vocab]``."""
        padded = np.zeros(LENGTH, np.int32)
        padded[: len(tokens)] = tokens
        return np.asarray(self._run(padded))[: len(tokens), : self.vocab_size].astype(np.float64)

    def logprobs(self, tokens: list[int]) -> Logits:
        """``[tokens, vocab]``, of the token behind each."""
        logits = self.logits(tokens)
        return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

    def greedy(self, prompt: list[int], count: int, change: Change) -> list[int]:
        answer: list[int] = []
        while len(answer) < count:
            answer.append(int(change(self.logits(prompt + answer)[-1], prompt, answer).argmax()))
        return answer
