"""Long texts, and tokenizers that tell how much of them they were given."""

from __future__ import annotations

from collections.abc import Sequence

from tests.text.families import TEXT, tokenizer

WORDS = sorted({word for text in TEXT for word in text.split()})
ASCII = list(filter(str.isascii, WORDS))


class Counting:
    """A tokenizer that tells how much it was given."""

    def __init__(self, family: str) -> None:
        self._inner, self.characters = tokenizer(family), 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.characters += len(text)
        return self._inner.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self._inner.decode(token_ids)


def prose(seed: int, words: int, among: Sequence[str] = WORDS) -> str:
    """Ordinary words with ordinary spaces between them, always others."""
    found = []
    for _ in range(words):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        found += [among[(seed >> 33) % len(among)], (" ", " ", " ", "\n", ", ", "  ", "\n\n")[(seed >> 40) % 7]]
    return "".join(found)
