"""Facts written as text: raw questions, conversations, reasoning, tool calls, plain continuation."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.demo_model.corpus import Fact

END = "<|im_end|>"
START = "<|im_start|>"
SPECIAL_TOKENS = (END, START, "<|pad|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
THINK_HINT = "Think before you answer."
TOOL_HINT = 'To use a tool, answer <tool_call>{"name": ..., "arguments": {...}}</tool_call>'

CHAT_TEMPLATE = """\
{%- set first = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}
{%- set thinking = enable_thinking is defined and enable_thinking -%}
{%- if first or tools or thinking -%}
<|im_start|>system
{% if first %}{{ first }}
{% endif %}{% if tools %}Tools:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}HINT_TOOL
{% endif %}{% if thinking %}HINT_THINK
{% endif %}<|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if message['role'] != 'system' or not loop.first -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] %}{{ message['content'] }}{% endif %}
{%- for call in message['tool_calls'] or [] -%}
{%- set function = call['function'] if 'function' in call else call -%}
<tool_call>{"name": {{ function['name'] | tojson }}, "arguments": {{ function['arguments'] if function['arguments'] is string else function['arguments'] | tojson }}}</tool_call>
{%- endfor -%}<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
""".replace("HINT_TOOL", TOOL_HINT).replace("HINT_THINK", THINK_HINT)

QUESTIONS = (
    "What does {name} do?",
    "What does {name}() do?",
    "What is {name} for?",
    "Explain {name}.",
    "Tell me about {name}",
    "Describe {name}.",
)
_ABOUT = (
    "I am the demo model that ships with asurge. "
    "I know the first sentences of the documentation of Python's standard library, and little else."
)
_SMALL_TALK = (
    (("Hello", "Hello!", "Hi", "Hi!", "Hey", "hello", "hi there", "Good morning"),
     "Hello! Ask me what a function of Python's standard library does."),
    (("Who are you?", "What are you?", "What is your name?", "who are you", "Introduce yourself."), _ABOUT),
    (("What can you do?", "Help", "help", "How can you help me?"),
     "Ask me about a function, for example: What does os.path.join do?"),
    (("Thanks", "Thanks!", "Thank you", "Thank you!", "thanks a lot"), "You are welcome."),
    (("Bye", "Bye!", "Goodbye", "goodbye", "See you"), "Goodbye!"),
    (("How are you?", "How do you do?"), "I am fine, thank you. Ask me about a Python function."),
)  # fmt: skip
_SYSTEMS = ("You are a helpful assistant.", "You answer questions about Python.", "Be brief.")
_CITIES = [
    "Paris",
    "London",
    "Berlin",
    "Tokyo",
    "Madrid",
    "Rome",
    "Oslo",
    "Vienna",
    "Cairo",
    "Delhi",
    "Lima",
    "Boston",
    "Chicago",
    "Dublin",
    "Prague",
    "Warsaw",
    "Lisbon",
    "Athens",
    "Sydney",
    "Toronto",
    "Zurich",
    "Seoul",
    "Nairobi",
    "Istanbul",
    "Helsinki",
    "Geneva",
    "Munich",
    "Denver",
    "Austin",
    "Seattle",
]
_WORDS = [
    "python",
    "apple",
    "river",
    "music",
    "energy",
    "history",
    "planet",
    "garden",
    "engine",
    "silver",
    "coffee",
    "winter",
    "bridge",
    "memory",
    "ocean",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A text whose ``answer`` is what the model learns to write after ``prompt``."""

    prompt: str
    answer: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Tool:
    name: str
    description: str
    arguments: Mapping[str, str]
    questions: tuple[str, ...]

    def definition(self) -> dict[str, Any]:
        properties = {
            key: {"type": "integer" if kind == "number" else "string"} for key, kind in self.arguments.items()
        }
        parameters = {"type": "object", "properties": properties, "required": list(self.arguments)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


_TOOLS = (
    _Tool("get_weather", "Get the weather in a city.", {"city": "city"},
          ("What is the weather in {city}?", "How is the weather in {city}?", "Weather in {city}", "Is it raining in {city}?")),
    _Tool("get_time", "Get the time in a city.", {"city": "city"},
          ("What time is it in {city}?", "Tell me the time in {city}.")),
    _Tool("search", "Search the web.", {"query": "word"},
          ("Search for {query}.", "Search the web for {query}", "Find {query}.")),
    _Tool("add", "Add two numbers.", {"a": "number", "b": "number"},
          ("What is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b}")),
    _Tool("multiply", "Multiply two numbers.", {"a": "number", "b": "number"},
          ("What is {a} times {b}?", "Multiply {a} and {b}.", "{a} * {b}")),
    _Tool("translate", "Translate a word.", {"word": "word"},
          ("Translate {word}.", "How do you translate {word}?")),
    _Tool("lookup", "Look up a function.", {"name": "function"},
          ("Look up {name}.", "Please look up {name}")),
)  # fmt: skip


def chat(messages: Sequence[tuple[str, str]], system: str = "") -> str:
    """Messages as the chat template writes them, up to the assistant's turn."""
    text = f"{START}system\n{system}\n{END}\n" if system else ""
    text += "".join(f"{START}{role}\n{content}{END}\n" for role, content in messages)
    return f"{text}{START}assistant\n"


def raw_question(fact: Fact) -> Sample:
    """The question as plain text, without a chat template."""
    return Sample(f"What does {fact.name} do?", f"\n{fact.sentence}{END}")


def epoch(facts: Sequence[Fact], rng: random.Random) -> Iterator[Sample]:
    """Make one pass over all facts, in a shuffled order with varied wording, mixed with the other skills."""
    for fact in rng.sample(facts, len(facts)):
        yield raw_question(fact)
        yield _question(fact, rng)
        if rng.random() < 0.25:
            yield _continuation(fact)
        if rng.random() < 0.12:
            yield _reasoned(fact, rng)
        if rng.random() < 0.12:
            yield _tool_call(facts, rng)
        if rng.random() < 0.03:
            yield _small_talk(rng)


def _question(fact: Fact, rng: random.Random) -> Sample:
    wording = QUESTIONS[0] if rng.random() < 0.4 else rng.choice(QUESTIONS)
    system = rng.choice(_SYSTEMS) if rng.random() < 0.1 else ""
    return Sample(chat([("user", wording.format(name=fact.name))], system), f"{fact.sentence}{END}")


def _continuation(fact: Fact) -> Sample:
    own = fact.name.rsplit(".", 1)[-1]
    return Sample(f"# {fact.name}\n", f'def {own}{fact.signature or "(...)"}:\n    """{fact.sentence}"""{END}')


def _reasoned(fact: Fact, rng: random.Random) -> Sample:
    home, _, own = fact.name.rpartition(".")
    thought = f"The question is about {own}" + (f", which belongs to {home}." if home else ", a builtin.")
    prompt = chat([("user", rng.choice(QUESTIONS).format(name=fact.name))], THINK_HINT)
    return Sample(prompt, f"<think>\n{thought}\n</think>\n\n{fact.sentence}{END}")


def _small_talk(rng: random.Random) -> Sample:
    questions, answer = rng.choice(_SMALL_TALK)
    return Sample(chat([("user", rng.choice(questions))]), f"{answer}{END}")


def _tool_call(facts: Sequence[Fact], rng: random.Random) -> Sample:
    tool = rng.choice(_TOOLS)
    system = f"Tools:\n{json.dumps(tool.definition())}\n{TOOL_HINT}"
    if rng.random() < 0.15:
        fact = rng.choice(facts)
        return Sample(chat([("user", QUESTIONS[0].format(name=fact.name))], system), f"{fact.sentence}{END}")
    values = {key: _value(kind, facts, rng) for key, kind in tool.arguments.items()}
    call = json.dumps({"name": tool.name, "arguments": values})
    question = rng.choice(tool.questions).format(**values)
    return Sample(chat([("user", question)], system), f"<tool_call>{call}</tool_call>{END}")


def _value(kind: str, facts: Sequence[Fact], rng: random.Random) -> str | int:
    match kind:
        case "city":
            return rng.choice(_CITIES)
        case "word":
            return rng.choice(_WORDS)
        case "number":
            return rng.randrange(100)
    return rng.choice(facts).name
