"""Between text and token ids: tokenizer, incremental detokenizer, stop strings, chat templates, context fitting."""

from asurge.text.chat import render_chat
from asurge.text.context import FittedPrompt, fit_prompt
from asurge.text.detokenizer import IncrementalDetokenizer
from asurge.text.stop import StopMatcher, StopScan
from asurge.text.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "FittedPrompt", "IncrementalDetokenizer", "StopMatcher", "StopScan", "Tokenizer", "fit_prompt",
    "load_tokenizer", "render_chat",
]  # fmt: skip
