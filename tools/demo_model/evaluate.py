"""Hold the demo model to its bar: ``python -m tools.demo_model.evaluate [--model FOLDER]``.

Everything is decoded greedily through the engine: the 300 sampled questions as plain text and as chat, the end of the answer,
tool calls, and reasoning. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from functools import partial

import anyio

from asurge.demo import QUESTIONS
from asurge.engine import Engine
from asurge.engine.stream import do_all
from asurge.outputs import RequestOutput
from asurge.params import SamplingParams

GREEDY = SamplingParams(max_tokens=96, temperature=0.0)
_CITIES = ("Paris", "Tokyo", "Oslo", "Lima", "Berlin", "Cairo", "Madrid", "Seattle")


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """Counts out of ``questions``, and for tool calls out of ``tools``."""

    questions: int
    right_raw: int
    right_chat: int
    right_thinking: int
    clean_end: int
    tools: int
    right_tools: int


def load_questions() -> list[dict[str, str]]:
    """The sampled questions: ``question``, ``name``, ``answer``."""
    return [json.loads(line) for line in QUESTIONS.read_text().splitlines()]


def is_right(text: str, answer: str) -> bool:
    """Whether a text is the expected first sentence and nothing else, white space aside."""
    return text.split() == answer.split()


async def evaluate(engine: Engine) -> Score:
    """Ask everything."""
    rows = load_questions()
    answers = [row["answer"] for row in rows]
    raw = await engine.generate([row["question"] for row in rows], GREEDY, use_tqdm=False)
    chat = await do_all([partial(_chat, engine, row["question"]) for row in rows])
    thinking = await do_all([partial(_chat, engine, row["question"], enable_thinking=True) for row in rows])
    thoughts = [_after_thinking(output.get_text()) for output in thinking]
    calls = await do_all([partial(_call, engine, city) for city in _CITIES])
    return Score(
        questions=len(rows),
        right_raw=_count([output.get_text() for output in raw], answers),
        right_chat=_count([output.get_text() for output in chat], answers),
        right_thinking=_count(thoughts, answers),
        clean_end=sum(output.finish_reason == "stop" for output in chat),
        tools=len(calls),
        right_tools=sum(calls),
    )


def _count(texts: Sequence[str], answers: Sequence[str]) -> int:
    return sum(is_right(text, answer) for text, answer in zip(texts, answers, strict=True))


async def _chat(engine: Engine, question: str, **template_kwargs: bool) -> RequestOutput:
    messages = [{"role": "user", "content": question}]
    return await engine.chat(messages, GREEDY, template_kwargs=template_kwargs)


def _after_thinking(text: str) -> str:
    """The answer after ``<think>...</think>``; empty if the text has no such block."""
    begin, _, rest = text.partition("<think>")
    thought, end, answer = rest.partition("</think>")
    return answer if end and thought.strip() and not begin.strip() else ""


async def _call(engine: Engine, city: str) -> bool:
    """Whether the stated tool is called, with the city in the question."""
    properties = {"city": {"type": "string"}}
    parameters = {"type": "object", "properties": properties, "required": ["city"]}
    function = {"name": "get_weather", "description": "Get the weather in a city.", "parameters": parameters}
    messages = [{"role": "user", "content": f"What is the weather in {city}?"}]
    output = await engine.chat(messages, GREEDY, tools=[{"type": "function", "function": function}])
    return called_tool(output.get_text()) == {"name": "get_weather", "arguments": {"city": city}}


def called_tool(text: str) -> object:
    """The JSON of the one ``<tool_call>`` that a text consists of; None if it is anything else."""
    text = text.strip()
    if not (text.startswith("<tool_call>") and text.endswith("</tool_call>")):
        return None
    try:
        call: object = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    except ValueError:
        return None
    return call


async def _main(model: str) -> None:
    async with Engine(model, silent_mode=True) as engine:
        print(json.dumps(dataclasses.asdict(await evaluate(engine)), indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the demo model.")
    parser.add_argument("--model", default="demo")
    anyio.run(_main, parser.parse_args().model)


if __name__ == "__main__":
    main()
