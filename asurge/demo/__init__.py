"""The small trained model that ships with asurge, and how it was made.

`corpus` takes facts from Python's standard library, `samples` writes them as text, `tokenizer` and `train`
make the checkpoint, `evaluate` holds it to its bar.
"""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The shipped checkpoint: a Hugging Face folder."""

QUESTIONS = Path(__file__).parent / "questions.jsonl"
"""300 sampled questions with the first sentences that answer them."""
