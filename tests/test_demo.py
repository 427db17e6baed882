"""The demo model: how it was made, and that it meets its bar."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from asurge import Engine
from asurge.demo import CHECKPOINT
from asurge.models import load_model
from asurge.models.decoder import Decoder
from tools.demo_model.corpus import collect_facts, first_sentence
from tools.demo_model.evaluate import called_tool, evaluate, is_right, load_questions
from tools.demo_model.samples import THINK_HINT, TOOL_HINT, chat, epoch
from tools.demo_model.train import CONFIG, export


def test_it_meets_its_size() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 12e6


async def test_it_meets_its_bar(demo: Engine) -> None:
    """At least 80% of 300 sampled questions right, as text and as chat, and all the other forms."""
    score = await evaluate(demo)
    print(score)
    assert score.questions == 300
    assert min(score.right_raw, score.right_chat) >= 0.8 * score.questions
    assert score.right_thinking >= 0.8 * score.questions
    assert score.clean_end >= 0.98 * score.questions
    assert score.right_tools == score.tools


def test_an_export_loads_as_what_was_trained(tmp_path: Path) -> None:
    _, trained = nnx.split(Decoder(CONFIG, dtype=jnp.dtype(jnp.float32), rngs=nnx.Rngs(0)))
    export(trained, Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")), tmp_path)
    _, loaded = nnx.split(load_model(tmp_path, dtype="bfloat16", progress=False))
    parameters = dict(nnx.to_flat_state(loaded))
    for path, leaf in nnx.to_flat_state(trained):
        assert jnp.array_equal(leaf[...].astype(jnp.bfloat16), parameters.pop(path)[...]), path
    assert not parameters


def test_the_questions_are_about_documented_functions() -> None:
    questions = load_questions()
    assert len({row["name"] for row in questions}) == 300
    if sys.version_info[:2] == (3, 11):  # the version it was trained on
        facts = {fact.name: fact.sentence for fact in collect_facts()}
        assert all(facts.get(row["name"]) == row["answer"] for row in questions)


def test_facts_are_the_same_every_time() -> None:
    facts = collect_facts()
    assert facts == collect_facts()
    names = [fact.name for fact in facts]
    assert names == sorted(set(names))
    assert {"os.path.join", "len", "str.join", "asyncio.run", "json.dumps"} <= set(names)


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("Return the sum. More follows.", "Return the sum."),
        ("join(a, *p) -> path\n\nJoin two paths.\n\nDetails.", "Join two paths."),
        ("sin(x)\n\nReturn the sine\nof x (in radians).", "Return the sine of x (in radians)."),
        ("hash(x) -- Return its hash value.", "Return its hash value."),
        ("Use e.g. this one, i.e. it", "Use e.g. this one, i.e. it"),
        ("Too short", None),
        ("", None),
        ("f(x)", None),
        ("x" * 300, None),
    ],
)
def test_first_sentences(doc: str, sentence: str | None) -> None:
    assert first_sentence(doc) == sentence


def test_epochs_are_seeded_and_whole() -> None:
    facts = collect_facts()[:50]
    first, again = (list(epoch(facts, random.Random(5))) for _ in range(2))
    assert first == again
    asked = {sample.prompt for sample in first}
    assert all(f"What does {fact.name} do?" in asked for fact in facts)


@pytest.mark.parametrize(
    ("system", "tools", "thinking"),
    [("", False, False), ("Be brief.", False, False), ("", True, False), ("", False, True)],
)
def test_the_template_writes_what_the_model_was_trained_on(system: str, tools: bool, thinking: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    messages = [{"role": "user", "content": "Hi"}]
    given = [{"role": "system", "content": system}, *messages] if system else messages
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    text = tokenizer.apply_chat_template(
        given, tools=[tool] if tools else None, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    listing = '{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}'
    head = system or (f"Tools:\n{listing}\n{TOOL_HINT}" if tools else THINK_HINT if thinking else "")
    assert text == chat([("user", "Hi")], head)
    assert tokenizer.decode(tokenizer.encode("naïve 日本 🎉\n\tx")) == "naïve 日本 🎉\n\tx"


def test_right_answers_are_exact() -> None:
    assert is_right("\nReturn  the sine of x.", "Return the sine of x.")
    assert not is_right("Return the cosine of x.", "Return the sine of x.")
    assert not is_right("Return the sine of x. And more.", "Return the sine of x.")


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ('<tool_call>{"name": "f"}</tool_call>', {"name": "f"}),
        ('<tool_call>{"name": "f"</tool_call>', None),
        ('{"name": "f"}', None),
        ('Sure: <tool_call>{"name": "f"}</tool_call>', None),
    ],
)
def test_a_tool_call_is_the_whole_text(text: str, call: object) -> None:
    assert called_tool(text) == call


def test_the_end_is_special_and_tags_are_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    text = "<think>a</think><tool_call>b</tool_call>"
    assert tokenizer.decode(tokenizer.encode(f"{text}<|im_end|>"), skip_special_tokens=True) == text
