"""What constrains answers of models that mark their reasoning: where it begins, and what holds behind it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import asurge.demo
from asurge import GuidedDecodingParams, SamplingParams
from asurge.constraints import Constraints
from asurge.guidance import SequenceConstraint, fill_masks
from asurge.plan import mask_words
from asurge.text import Tokenizer, load_tokenizer

FORM = SamplingParams(guided_decoding=GuidedDecodingParams(regex="[a-c]{9}"))
ASKED = "<|im_start|>user\nWhat does it say?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def codec() -> Tokenizer:
    """A tokenizer with tokens for ``<think>`` and ``</think>``."""
    return load_tokenizer(Path(asurge.demo.__file__).parent / "checkpoint")


async def constraint(codec: Tokenizer, prompt: str, params: SamplingParams = FORM) -> SequenceConstraint:
    made = Constraints(codec, codec.vocab_size, codec.eos_token_ids)
    ids = codec.encode(prompt, add_special_tokens=False)
    (one,) = await made.prepare(params, ids, codec.eos_token_ids, 1)
    return one


def texts(one: SequenceConstraint, codec: Tokenizer) -> set[str]:
    """The tokens that may come next."""
    masks = np.full((1, mask_words(codec.vocab_size)), 0xFFFFFFFF, np.uint32)
    assert fill_masks([one], masks) == {}
    bits = np.unpackbits(masks.view(np.uint8), bitorder="little")[: codec.vocab_size]
    return {codec.decode([token], skip_special_tokens=False) for token in np.flatnonzero(bits).tolist()}


@pytest.mark.parametrize("space", ["", "\n", "\n\n", " \n \n"])
async def test_a_prompt_that_ends_with_the_mark_has_begun_the_reasoning(codec: Tokenizer, space: str) -> None:
    one = await constraint(codec, f"{ASKED}<think>{space}")
    assert {"x", "</think>", "y"} <= texts(one, codec)
    one.accept(codec.encode("yes</think>", add_special_tokens=False))
    assert not {"x", "y"} & texts(one, codec)


@pytest.mark.parametrize("said", ["What does <think> do?", "<think>", "<think>\nx</think><think>"])
async def test_a_mark_in_what_somebody_says_switches_no_form_off(codec: Tokenizer, said: str) -> None:
    one = await constraint(codec, f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n")
    assert "a" in texts(one, codec)
    assert not {"x", "y", "</think>"} & texts(one, codec)
    spent = await constraint(codec, said + " ok", dataclasses.replace(FORM, guided_decoding=None, thinking_budget=0))
    assert {"x", "y"} <= texts(spent, codec)
