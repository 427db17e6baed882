"""The tokenizer as grammars are to see it."""

from __future__ import annotations

import json
from typing import Any

_HIDDEN = "\ue000"
"""Before the text of special tokens, so that it is found in no other text."""


def grammar_tokenizer(tokenizer: str, vocab_size: int) -> str:
    """Make a tokenizer.json for llguidance.

    Text that a grammar forces is tokenised there, and special tokens found in it would not be the text that the grammar means;
    tokens that the model has no row for must not be sampled.

    Args:
        vocab_size: the model's.
    """
    parsed: dict[str, Any] = json.loads(tokenizer)
    known = [one for one in parsed.get("added_tokens") or () if one["id"] < vocab_size]
    names = {
        one["content"]: _HIDDEN + one["content"] for one in known if one.get("special") or _is_mark(one["content"])
    }
    parsed["added_tokens"] = [
        {**one, "content": names[one["content"]], "special": True} if one["content"] in names else one for one in known
    ]
    parsed["post_processor"] = None  # which may name them
    vocab = parsed["model"].get("vocab")
    if isinstance(vocab, dict):
        parsed["model"]["vocab"] = {names.get(text, text): token for text, token in vocab.items() if token < vocab_size}
    elif isinstance(vocab, list):
        parsed["model"]["vocab"] = [[names.get(text, text), score] for text, score in vocab[:vocab_size]]
    return json.dumps(parsed)


def _is_mark(text: str) -> bool:
    """Whether llguidance takes a token for a special one, whatever the tokenizer says of it."""
    return text.startswith("<") and text.endswith(">")
