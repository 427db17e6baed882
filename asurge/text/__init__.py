"""Text to token ids and back: tokenizer, incremental detokenizer, stop strings, chat templates, context fitting."""

from asurge.text.chat import Rendering, message_text, part_text, plain_messages, render_chat
from asurge.text.context import FittedPrompt, answer_room, cut, fit_alone, fit_prompt
from asurge.text.conversation import FittedConversation, fit_conversation
from asurge.text.detokenizer import IncrementalDetokenizer
from asurge.text.excerpt import CHARACTERS_PER_TOKEN, Excerpt, excerpt
from asurge.text.stop import StopMatcher, StopScan
from asurge.text.template import Allowance
from asurge.text.tokenizer import BLOCKING_CHARACTERS, Tokenizer, load_tokenizer

__all__ = [
    "BLOCKING_CHARACTERS",
    "CHARACTERS_PER_TOKEN",
    "Allowance",
    "Excerpt",
    "FittedConversation",
    "FittedPrompt",
    "IncrementalDetokenizer",
    "Rendering",
    "StopMatcher",
    "StopScan",
    "Tokenizer",
    "answer_room",
    "cut",
    "excerpt",
    "fit_alone",
    "fit_conversation",
    "fit_prompt",
    "load_tokenizer",
    "message_text",
    "part_text",
    "plain_messages",
    "render_chat",
]  # fmt: skip
