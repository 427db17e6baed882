"""The small trained model that ships with asurge; ``tools/demo_model`` makes it."""

from __future__ import annotations

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
"""The shipped checkpoint: a Hugging Face folder."""

QUESTIONS = Path(__file__).parent / "questions.jsonl"
"""300 sampled questions with the first sentences that answer them."""
