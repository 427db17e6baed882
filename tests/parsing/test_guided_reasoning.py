"""Calls that begin within the reasoning: their mark ends it, and the grammar binds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asurge.engine.constraints import thinking_tokens
from asurge.guidance import SequenceConstraint
from asurge.parsing import TOOL_FORMATS
from asurge.structured import GuidedDecodingParams
from tests.guidance.walks import VOCAB, mask_of
from tests.parsing.guided import NAMES, check, grammars, tools, with_marks
from tests.parsing.pieces import calls, content, events, parser, reasoning

WITHOUT_MARK = {"llama3_json", "llama4_json", "pythonic", "llama4_pythonic", "olmo3", "phi4_mini", "phi4_mini_json"}
"""Formats whose calls begin with text: nothing tells them from reasoning."""
CHANNELS = {"gpt_oss", "openai"}
"""Formats whose reasoning is part of their grammar."""
MARKED = [name for name in NAMES if name not in WITHOUT_MARK | CHANNELS]
THOUGHT = "I look it up. "


def constraint(form: dict[str, Any]) -> SequenceConstraint:
    """The constraint of a text whose prompt has begun the reasoning."""
    model = with_marks()
    compiled = grammars("marks are tokens").compile(GuidedDecodingParams(**form))
    thinking = thinking_tokens(model)
    assert thinking is not None
    return SequenceConstraint(model.eos_token_ids, VOCAB, grammar=compiled.start(), thinking=thinking, prompt=thinking.begin)  # fmt: skip


def written(one: SequenceConstraint, begun: str, seed: int) -> str:
    """A random text that goes on from one that has begun, up to where it may end."""
    model, rng = with_marks(), np.random.default_rng(seed)
    ids = model.encode(begun, add_special_tokens=False)
    for token in ids:
        assert token in mask_of(one)
        one.accept([token])
    ends = list(model.eos_token_ids)
    while not one.finished and len(ids) < 4000:
        options = mask_of(one).tolist()
        if any(end in options for end in ends):
            break
        ids.append(int(rng.choice(options)))
        one.accept(ids[-1:])
    assert len(ids) < 4000
    return model.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("binding", ["forced", "beside a form"])
@pytest.mark.parametrize("name", MARKED)
def test_a_call_within_the_reasoning_is_bound_by_its_grammar(name: str, binding: str) -> None:
    for seed in range(4):
        given = tools(name, seed)
        grammar = TOOL_FORMATS[name].grammar(given, parallel=False)
        form = {"grammar": grammar} if binding == "forced" else {"json_object": True, "alternative": grammar}
        mark = TOOL_FORMATS[name].tags([]) or {"triggers": [TOOL_FORMATS[name].marks[0]]}
        text = written(constraint(form), THOUGHT + mark["triggers"][0], seed)
        found = events(parser(name, "think", reasoning_open=True, tools=given), [text])
        check(calls(found), given)
        assert len(calls(found)) == 1
        assert (reasoning(found), content(found)) == (THOUGHT, "")


@pytest.mark.parametrize("name", [name for name in MARKED if TOOL_FORMATS[name].tags([]) is not None])
def test_a_call_of_a_strict_tool_within_the_reasoning_fits_its_schema(name: str) -> None:
    for seed in range(4):
        given = tools(name, seed)
        tag = TOOL_FORMATS[name].tags(given)
        assert tag is not None
        text = written(constraint({"structural_tag": tag}), THOUGHT + tag["triggers"][0], seed)
        found = events(parser(name, "think", reasoning_open=True, tools=given), [text])
        check(calls(found), given)
        assert len(calls(found)) == 1
        assert reasoning(found) == THOUGHT  # text behind the call is free


@pytest.mark.parametrize("form", [{"json_object": True}, {"choice": ["a", "b"]}])
def test_other_marks_within_the_reasoning_are_part_of_it(form: dict[str, Any]) -> None:
    one = constraint(form)
    text = written(one, f"{THOUGHT}<tool_call> and more</think>", 0)
    assert text.startswith(f"{THOUGHT}<tool_call> and more</think>")


def test_special_tokens_that_trigger_nothing_do_not_end_the_reasoning() -> None:
    tag = TOOL_FORMATS["hermes"].tags(tools("hermes", 0))
    one = constraint({"structural_tag": tag})
    one.accept(with_marks().encode("<arg_key>", add_special_tokens=False))
    assert one.grammar is None


def test_forks_end_their_reasoning_by_themselves() -> None:
    one = constraint({"grammar": TOOL_FORMATS["hermes"].grammar(tools("hermes", 0), parallel=False)})
    other = one.fork()
    one.accept(with_marks().encode("<tool_call>", add_special_tokens=False))
    assert one.grammar is not None
    assert other.grammar is None
