"""The demo model: its corpus, its folder, and the bar it is held to."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asurge
from asurge.demo import CHECKPOINT
from asurge.demo.corpus import Fact, collect_facts, first_sentence
from asurge.demo.evaluate import (
    Answer,
    Render,
    called_tool,
    is_reasoned,
    is_right,
    load_questions,
    make_render,
    sample_tasks,
    score_all,
)
from asurge.demo.samples import END, THINK_HINT, TOOL_HINT, Sample, chat, epoch, tool_tasks
from asurge.params import SamplingParams
from asurge.text.tokenizer import Tokenizer, load_tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=128)
MAX_FOLDER_BYTES = 12_000_000


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return collect_facts()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(CHECKPOINT)


@pytest.fixture(scope="module")
def render() -> Render:
    return make_render(CHECKPOINT)


class TestCorpus:
    def test_is_the_same_each_time(self, facts: list[Fact]) -> None:
        assert collect_facts() == facts

    def test_names_are_unique_and_sorted(self, facts: list[Fact]) -> None:
        names = [fact.name for fact in facts]
        assert names == sorted(set(names))

    def test_functions_go_by_the_name_people_use(self, facts: list[Fact]) -> None:
        names = {fact.name for fact in facts}
        assert {"len", "os.path.join", "os.getcwd", "json.dumps", "str.split", "math.sqrt"} <= names
        assert not [name for name in names if name.startswith(("posix", "builtins", "ntpath"))]

    def test_sentences_are_one_line_of_bounded_length(self, facts: list[Fact]) -> None:
        assert len(facts) > 1500
        assert all(12 <= len(fact.sentence) <= 200 and "\n" not in fact.sentence for fact in facts)

    @pytest.mark.parametrize(
        ("doc", "expected"),
        [
            ("Return the length.", "Return the length."),
            ("Return the length. And more.", "Return the length."),
            ("Return the\n    length of it.\n\nMore text.", "Return the length of it."),
            ("join(a, *p) -> path\n\nJoin the given parts.", "Join the given parts."),
            ("sort(x) -- Sort a sequence in place.", "Sort a sequence in place."),
            ("No full stop at the end", "No full stop at the end"),
            ("Round to 0.5 at most.", "Round to 0.5 at most."),
            ("", None),
            ("Short.", None),
            ("f(x) -> y", None),
            ("x" * 201, None),
            ("Überrascht den Leser sehr.", None),
        ],
    )
    def test_first_sentence(self, doc: str, expected: str | None) -> None:
        assert first_sentence(doc) == expected


class TestSamples:
    def test_an_epoch_is_a_function_of_its_seed(self, facts: list[Fact]) -> None:
        def some(seed: int) -> list[Sample]:
            return list(epoch(facts[:50], random.Random(seed)))

        assert some(1) == some(1)
        assert some(1) != some(2)

    def test_every_answer_ends_once(self, facts: list[Fact]) -> None:
        samples = list(epoch(facts[:200], random.Random(0)))
        assert all(sample.answer.endswith(END) and sample.answer.count(END) == 1 for sample in samples)

    def test_tool_tasks_name_their_arguments_in_the_question(self, facts: list[Fact]) -> None:
        for task in tool_tasks(facts, random.Random(0), 50):
            assert task.call["name"] == task.tool["function"]["name"]
            assert all(str(value) in task.question for value in task.call["arguments"].values())


class TestTemplate:
    """What the template renders is what the model was trained on."""

    def test_a_question(self, render: Render) -> None:
        assert render([{"role": "user", "content": "Hi"}]) == chat([("user", "Hi")])

    def test_a_system_message(self, render: Render) -> None:
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        assert render(messages) == chat([("user", "Hi")], "Be brief.")

    def test_reasoning_is_asked_for_in_the_system_message(self, render: Render) -> None:
        messages = [{"role": "user", "content": "Hi"}]
        assert render(messages, enable_thinking=True) == chat([("user", "Hi")], THINK_HINT)
        assert render(messages, enable_thinking=False) == chat([("user", "Hi")])

    def test_a_tool_is_stated_in_the_system_message(self, render: Render, facts: list[Fact]) -> None:
        (task,) = tool_tasks(facts, random.Random(0), 1)
        system = f"Tools:\n{json.dumps(task.tool)}\n{TOOL_HINT}"
        messages = [{"role": "user", "content": task.question}]
        assert render(messages, tools=[task.tool]) == chat([("user", task.question)], system)

    def test_a_call_and_its_result(self, render: Render) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        messages = [
            {"role": "user", "content": "Add 1."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2"},
        ]
        written = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
        assert render(messages) == chat([("user", "Add 1."), ("assistant", written), ("tool", "2")])


class TestTokenizer:
    @given(st.text())
    def test_any_text_comes_back(self, tokenizer: Tokenizer, text: str) -> None:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text

    def test_the_end_is_special_and_tags_are_text(self, tokenizer: Tokenizer) -> None:
        ids = tokenizer.encode(f"<think>a</think><tool_call>b</tool_call>{END}")
        assert len(ids) == 7
        assert ids[-1] in tokenizer.eos_token_ids
        assert tokenizer.decode(ids) == "<think>a</think><tool_call>b</tool_call>"


class TestCheckpoint:
    def test_the_folder_is_small(self) -> None:
        assert sum(path.stat().st_size for path in CHECKPOINT.rglob("*")) < MAX_FOLDER_BYTES

    def test_the_config_and_the_tokenizer_agree(self, tokenizer: Tokenizer) -> None:
        config = json.loads((CHECKPOINT / "config.json").read_text())
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert config["vocab_size"] == tokenizer.vocab_size
        assert config["eos_token_id"] in tokenizer.eos_token_ids

    def test_there_are_300_questions(self) -> None:
        assert len({row["question"] for row in load_questions()}) == 300

    @pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the model learned Python 3.11's documentation")
    def test_the_questions_are_about_known_facts(self, facts: list[Fact]) -> None:
        known = {fact.name: fact.sentence for fact in facts}
        assert all(known[row["name"]] == row["answer"] for row in load_questions())


class TestScoring:
    def test_right_is_the_sentence_up_to_whitespace(self) -> None:
        assert is_right("\nReturn  it.", "Return it.")
        assert not is_right("Return it. Then more.", "Return it.")

    @pytest.mark.parametrize(
        ("text", "right"),
        [
            ("<think>\nHm.\n</think>\n\nReturn it.", True),
            ("<think></think>Return it.", False),
            ("<think>Hm.Return it.", False),
            ("Return it.", False),
            ("Well <think>Hm.</think>Return it.", False),
            ("<think>Hm.</think>Return that.", False),
        ],
    )
    def test_reasoning(self, text: str, right: bool) -> None:
        assert is_reasoned(text, "Return it.") is right

    @pytest.mark.parametrize(
        ("text", "call"),
        [
            ('<tool_call>{"name": "f"}</tool_call>', {"name": "f"}),
            ('<tool_call>{"name": "f"</tool_call>', None),
            ('{"name": "f"}', None),
            ('Sure: <tool_call>{"name": "f"}</tool_call>', None),
        ],
    )
    def test_tool_calls(self, text: str, call: Any) -> None:
        assert called_tool(text) == call

    def test_every_skill_is_counted(self, facts: list[Fact], render: Render) -> None:
        rows = load_questions()[:3]
        tasks = sample_tasks(facts, 2)
        known = {row["question"]: row["answer"] for row in rows}

        def complete(prompts: Sequence[str]) -> list[Answer]:
            return [Answer(known.get(prompt, ""), ended=prompt in known) for prompt in prompts]

        scores = score_all(complete, render, rows, tasks)
        assert {name: tuple(score) for name, score in scores.items()} == {
            "raw question": (3, 3, 3),
            "chat question": (0, 0, 3),
            "reasoning": (0, 0, 3),
            "tool call": (0, 0, 2),
        }


class TestBar:
    """Greedy answers of the shipped checkpoint, through the engine."""

    async def test_80_percent_of_the_questions_are_answered_right(self, demo_engine: asurge.Engine) -> None:
        rows = load_questions()
        outputs = await demo_engine.generate([row["question"] for row in rows], GREEDY, use_tqdm=False)
        right = sum(is_right(output.get_text(), row["answer"]) for output, row in zip(outputs, rows, strict=True))
        assert right >= 0.8 * len(rows)

    async def test_it_answers_in_chat_with_a_clean_end(self, demo_engine: asurge.Engine) -> None:
        output = await demo_engine.chat([{"role": "user", "content": "What does os.path.join do?"}], GREEDY)
        assert output.finish_reason == "stop"
        assert output.get_text() == "Join two or more pathname components, inserting '/' as needed."

    async def test_it_reasons_when_asked(self, demo_engine: asurge.Engine) -> None:
        messages = [{"role": "user", "content": "What does os.path.join do?"}]
        output = await demo_engine.chat(messages, GREEDY, template_kwargs={"enable_thinking": True})
        assert output.finish_reason == "stop"
        assert is_reasoned(output.get_text(), "Join two or more pathname components, inserting '/' as needed.")

    async def test_it_calls_a_stated_tool(self, demo_engine: asurge.Engine, facts: list[Fact]) -> None:
        tool = next(task.tool for task in sample_tasks(facts) if task.call["name"] == "get_weather")
        messages = [{"role": "user", "content": "What is the weather in Paris?"}]
        output = await demo_engine.chat(messages, GREEDY, tools=[tool])
        assert output.finish_reason in ("stop", "tool_calls")
        assert called_tool(output.get_text()) == {"name": "get_weather", "arguments": {"city": "Paris"}}
