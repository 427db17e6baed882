"""Constraints of models that mark their reasoning: where it begins, and what holds after it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import asurge.demo
from asurge import Engine, GuidedDecodingParams, SamplingParams
from asurge.engine.constraints import Constraints
from asurge.guidance import SequenceConstraint, fill_masks
from asurge.parsing import REASONING_FORMATS
from asurge.plan import mask_words
from asurge.text import Tokenizer, load_tokenizer
from tests.text.families import tokenizer_with

FORM = SamplingParams(guided_decoding=GuidedDecodingParams(regex="[a-c]{9}"))
ASKED = "<|im_start|>user\nWhat does it say?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def codec() -> Tokenizer:
    """A tokenizer with tokens for ``<think>`` and ``</think>``."""
    return load_tokenizer(Path(asurge.demo.__file__).parent / "checkpoint")


async def constraint(
    codec: Tokenizer, prompt: str, params: SamplingParams = FORM, *, thinks: bool | None = False
) -> SequenceConstraint:
    made = Constraints(codec, codec.vocab_size, codec.eos_token_ids)
    ids = codec.encode(prompt, add_special_tokens=False)
    (one,) = await made.prepare(params, ids, codec.eos_token_ids, 1, thinks=thinks)
    return one


def texts(one: SequenceConstraint, codec: Tokenizer) -> set[str]:
    """The tokens that may come next."""
    masks = np.full((1, mask_words(codec.vocab_size)), 0xFFFFFFFF, np.uint32)
    assert fill_masks([one], masks) == {}
    bits = np.unpackbits(masks.view(np.uint8), bitorder="little")[: codec.vocab_size]
    return {codec.decode([token], skip_special_tokens=False) for token in np.flatnonzero(bits).tolist()}


PAIRS = sorted({pair for fmt in REASONING_FORMATS.values() for pair in fmt.pairs})


@pytest.mark.parametrize(("begin", "end"), PAIRS)
async def test_every_reasoning_format_has_a_thinking_budget(begin: str, end: str) -> None:
    codec = tokenizer_with({begin: False, end: False})
    params = SamplingParams(thinking_budget=1)
    one = await constraint(codec, begin, params)
    assert len(texts(one, codec)) > 1
    one.accept(codec.encode("a", add_special_tokens=False))
    assert texts(one, codec) == {end}


def test_every_format_but_channels_has_marks() -> None:
    assert {name for name, fmt in REASONING_FORMATS.items() if not fmt.pairs} == {"gpt_oss", "openai_gptoss"}
    assert all(len(fmt.begins) == len(fmt.ends) == len(fmt.pairs) for fmt in REASONING_FORMATS.values())
    assert {("◁think▷", "◁/think▷"), ("<seed:think>", "</seed:think>")} <= set(PAIRS)


@pytest.mark.parametrize("space", ["", "\n", "\n\n", " \n \n"])
async def test_a_prompt_that_ends_with_the_mark_has_begun_the_reasoning(codec: Tokenizer, space: str) -> None:
    one = await constraint(codec, f"{ASKED}<think>{space}")
    assert {"x", "</think>", "y"} <= texts(one, codec)
    one.accept(codec.encode("yes</think>", add_special_tokens=False))
    assert not {"x", "y"} & texts(one, codec)


@pytest.mark.parametrize("said", ["What does <think> do?", "<think>", "<think>\nx</think><think>"])
async def test_a_reasoning_mark_in_a_message_does_not_disable_the_constraint(codec: Tokenizer, said: str) -> None:
    one = await constraint(codec, f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n")
    assert "a" in texts(one, codec)
    assert not {"x", "y", "</think>"} & texts(one, codec)
    spent = await constraint(codec, said + " ok", dataclasses.replace(FORM, guided_decoding=None, thinking_budget=0))
    assert {"x", "y"} <= texts(spent, codec)


@pytest.fixture(params=[False, True])
def habit(request: pytest.FixtureRequest, codec: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the chat template speaks of reasoning."""
    if request.param:
        monkeypatch.setattr(Tokenizer, "chat_template", "{{ message.content.split('</think>')[-1] }}")
    return bool(request.param)


async def test_a_model_may_reason_if_requested_or_by_default(codec: Tokenizer, habit: bool) -> None:
    for thinks, budget, expected in (
        (None, None, habit),
        (True, None, True),
        (False, None, False),
        (None, 100, True),
        (True, 0, False),
    ):
        params = dataclasses.replace(FORM, thinking_budget=budget)
        one = await constraint(codec, ASKED, params, thinks=thinks)
        assert ("<think>" in texts(one, codec)) == expected, (thinks, budget)
        assert "a" in texts(one, codec)
        assert "x" not in texts(one, codec)


@pytest.mark.parametrize("tail", ["<think>\n\n</think>\n\n", "<think></think>", "</think>"])
async def test_reasoning_that_a_template_has_left_out_does_not_begin(codec: Tokenizer, tail: str) -> None:
    one = await constraint(codec, ASKED + tail, thinks=True)
    assert not {"<think>", "x"} & texts(one, codec)


@pytest.mark.parametrize("thinks", [None, True])
async def test_structured_output_leaves_reasoning_free(demo: Engine, thinks: bool | None) -> None:
    """The model reasons as requested; without a request, a constraint with few tokens left does not make it reason."""
    kwargs = {} if thinks is None else {"enable_thinking": thinks}
    params = dataclasses.replace(FORM, temperature=0.0, max_tokens=200)
    output = await demo.chat([{"role": "user", "content": "What does math.sqrt do?"}], params, template_kwargs=kwargs)
    thought, end, answer = output.get_text().rpartition("</think>")
    assert re.fullmatch("[a-c]{9}", answer)
    assert (thought.startswith("<think>"), bool(end)) == (bool(thinks), bool(thinks))
