"""Random texts under constraints: a model that samples any allowed token."""

from __future__ import annotations

import functools

import numpy as np

from asurge.guidance import Grammars, SequenceConstraint, fill_masks
from asurge.guidance.grammar import GrammarState
from asurge.plan import mask_words
from asurge.structured import GuidedDecodingParams
from tests.text.families import tokenizer

VOCAB = 512
"""More than the tokenizers have: the rest is padding."""


@functools.cache
def grammars(family: str = "byte-level BPE") -> Grammars:
    return Grammars(tokenizer(family), VOCAB, tokenizer(family).eos_token_ids)


def start(family: str = "byte-level BPE", **form: object) -> GrammarState:
    return grammars(family).compile(GuidedDecodingParams(**form)).start()


def allowed(state: GrammarState) -> np.ndarray:
    """Token ids that may come next."""
    mask = np.zeros(mask_words(VOCAB), np.uint32)
    state.fill(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def mask_of(constraint: SequenceConstraint) -> np.ndarray:
    """Allowed token ids."""
    masks = np.full((1, mask_words(VOCAB)), 0xFFFFFFFF, np.uint32)
    assert fill_masks([constraint], masks) == {}
    bits = np.unpackbits(masks.view(np.uint8), bitorder="little")
    return np.flatnonzero(bits[:VOCAB])


def walk(constraint: SequenceConstraint, seed: int, *, family: str = "byte-level BPE", limit: int = 2000) -> str | None:
    """A random text; None if it did not end within ``limit`` tokens."""
    rng, ends, ids = np.random.default_rng(seed), tokenizer(family).eos_token_ids, list[int]()
    while len(ids) < limit:
        allowed = mask_of(constraint)
        assert allowed.max() < tokenizer(family).vocab_size
        ending = [token for token in allowed.tolist() if token in ends]
        token = ending[0] if ending and rng.random() < 0.5 else int(rng.choice(allowed))
        constraint.accept([token])
        if token in ends:
            return tokenizer(family).decode(ids)
        ids.append(token)
        if constraint.finished:
            return tokenizer(family).decode(ids)
    return None
