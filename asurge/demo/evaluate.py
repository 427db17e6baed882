"""Score the demo model through the engine: ``python -m asurge.demo.evaluate`` (a minute or so on two CPU cores).

Greedy decoding. An answer is right if it is the documentation's first sentence, compared after collapsing
whitespace, and nothing else; a clean end is one the model made itself with its end token.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from asurge.demo import CHECKPOINT, QUESTIONS
from asurge.demo.corpus import Fact, collect_facts
from asurge.demo.samples import ToolTask, tool_tasks
from asurge.params import SamplingParams

NUM_TOOL_TASKS = 100
SEED = 1
"""Of the tool tasks: not the seed the model was trained with."""

MAX_TOKENS = 128


class Answer(NamedTuple):
    """One completion: its text, and whether the model ended it itself."""

    text: str
    ended: bool


class Score(NamedTuple):
    """How many of ``total`` were ``right``, and how many ended cleanly."""

    right: int
    ended: int
    total: int

    def __str__(self) -> str:
        return f"{self.right}/{self.total} right ({self.right / self.total:.1%}), {self.ended}/{self.total} ended cleanly"


Complete = Callable[[Sequence[str]], list[Answer]]
Render = Callable[..., str]
"""Messages, and ``tools`` or ``enable_thinking``, to a prompt: the chat template."""


def load_questions(path: Path = QUESTIONS) -> list[dict[str, str]]:
    """The sampled questions: ``question``, ``name`` and the expected ``answer`` of each."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def is_right(text: str, expected: str) -> bool:
    """Whether ``text`` is the expected sentence, up to whitespace."""
    return text.split() == expected.split()


def is_reasoned(text: str, expected: str) -> bool:
    """Whether ``text`` is one non-empty ``<think>`` block and then the expected sentence."""
    opening, _, rest = text.strip().partition("<think>")
    thought, closing, answer = rest.partition("</think>")
    return not opening and bool(thought.strip()) and bool(closing) and is_right(answer, expected)


def called_tool(text: str) -> Any:
    """The JSON inside the one ``<tool_call>`` that ``text`` consists of; None if it is anything else."""
    text = text.strip()
    if not (text.startswith("<tool_call>") and text.endswith("</tool_call>")):
        return None
    try:
        return json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    except json.JSONDecodeError:
        return None


def score_all(
    complete: Complete, render: Render, questions: Sequence[Mapping[str, str]], tasks: Sequence[ToolTask]
) -> dict[str, Score]:
    """Scores of every skill, by name."""
    chats = [[{"role": "user", "content": row["question"]}] for row in questions]
    expected = [row["answer"] for row in questions]
    calls = complete([render([{"role": "user", "content": task.question}], tools=[task.tool]) for task in tasks])
    return {
        "raw question": _score(complete([row["question"] for row in questions]), expected, is_right),
        "chat question": _score(complete([render(chat) for chat in chats]), expected, is_right),
        "reasoning": _score(complete([render(chat, enable_thinking=True) for chat in chats]), expected, is_reasoned),
        "tool call": _score(calls, [task.call for task in tasks], lambda text, call: called_tool(text) == call),
    }


def _score(answers: Sequence[Answer], expected: Sequence[Any], right: Callable[[str, Any], bool]) -> Score:
    hits = sum(right(answer.text, want) for answer, want in zip(answers, expected, strict=True))
    return Score(hits, sum(answer.ended for answer in answers), len(answers))


def engine_scores(model: str, questions: Sequence[Mapping[str, str]], tasks: Sequence[ToolTask]) -> dict[str, Score]:
    """`score_all` through the blocking engine."""
    from asurge.blocking import Engine

    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    with Engine(model) as engine:

        def complete(prompts: Sequence[str]) -> list[Answer]:
            outputs = engine.generate(list(prompts), params, use_tqdm=False)
            return [Answer(output.get_text(), output.finish_reason == "stop") for output in outputs]

        return score_all(complete, make_render(CHECKPOINT if model == "demo" else Path(model)), questions, tasks)


def make_render(folder: Path) -> Render:
    """The checkpoint's chat template, up to the assistant's turn."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def render(messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))

    return render


def sample_tasks(facts: Sequence[Fact], count: int = NUM_TOOL_TASKS, seed: int = SEED) -> list[ToolTask]:
    """Seeded tool tasks of the kind the model was trained on, one tool stated in each."""
    return tool_tasks(facts, random.Random(seed), count)


def main() -> None:
    """Print the scores."""
    parser = argparse.ArgumentParser(description="Score asurge's demo model through the engine.")
    parser.add_argument("--model", default="demo", help="'demo' or a folder made by asurge.demo.train")
    parser.add_argument("--limit", type=int, help="ask only the first of the questions")
    given = parser.parse_args()
    for name, score in engine_scores(given.model, load_questions()[: given.limit], sample_tasks(collect_facts())).items():
        print(f"{name:14} {score}")


if __name__ == "__main__":
    main()
