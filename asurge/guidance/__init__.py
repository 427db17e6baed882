"""Constrained decoding: grammars, banned words and least lengths, as bit masks of allowed tokens on the host."""

from asurge.guidance.constraint import SequenceConstraint, ThinkingTokens, fill_masks
from asurge.guidance.grammar import Grammar, Grammars
from asurge.guidance.repetition import RepetitionStop
from asurge.guidance.rules import AllowedTokens, BadWords, MinTokens, bits_of

__all__ = [
    "AllowedTokens",
    "BadWords",
    "Grammar",
    "Grammars",
    "MinTokens",
    "RepetitionStop",
    "SequenceConstraint",
    "ThinkingTokens",
    "bits_of",
    "fill_masks",
]
