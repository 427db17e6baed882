"""Calls as each format writes them, and texts in which calls, halves of marks and other text are mixed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Call = tuple[str, dict[str, Any]]


def objects(calls: Sequence[Call], key: str = "arguments") -> list[str]:
    return [json.dumps({"name": name, key: given}, ensure_ascii=False) for name, given in calls]


def hermes(calls: Sequence[Call]) -> str:
    return "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in objects(calls))


def llama(calls: Sequence[Call]) -> str:
    return "; ".join(objects(calls, "parameters"))


def python_tag(calls: Sequence[Call]) -> str:
    return "<|python_tag|>" + llama(calls) + "<|eom_id|>"


def pythonic(calls: Sequence[Call]) -> str:
    def call(name: str, given: dict[str, Any]) -> str:
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"

    return f"[{', '.join(call(*one) for one in calls)}]"


def llama4(calls: Sequence[Call]) -> str:
    return f"<|python_start|>{pythonic(calls)}<|python_end|><|eot|>"


def mistral(calls: Sequence[Call]) -> str:
    return f"[TOOL_CALLS] [{', '.join(objects(calls))}]</s>"


def mistral_v11(calls: Sequence[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{json.dumps(given)}" for name, given in calls)


def mistral_v7(calls: Sequence[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[CALL_ID]{index:09}[ARGS]{json.dumps(given)}" for index, (name, given) in enumerate(calls))  # fmt: skip


def deepseek_v3(calls: Sequence[Call]) -> str:
    inner = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{json.dumps(given)}\n```<｜tool▁call▁end｜>"
        for name, given in calls
    )
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"


def deepseek_v31(calls: Sequence[Call]) -> str:
    inner = "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{json.dumps(given)}<｜tool▁call▁end｜>" for name, given in calls
    )
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"


def gemma(calls: Sequence[Call]) -> str:
    def value(one: Any) -> str:
        if isinstance(one, str):
            return f"<escape>{one}<escape>"
        if isinstance(one, dict):
            return "{" + ",".join(f"<escape>{key}<escape>:{value(inner)}" for key, inner in one.items()) + "}"
        if isinstance(one, list):
            return "[" + ",".join(map(value, one)) + "]"
        return json.dumps(one)

    return "".join(
        f"<start_function_call>call:{name}{{{','.join(f'{key}:{value(one)}' for key, one in given.items())}}}<end_function_call>"
        for name, given in calls
    )


def granite(calls: Sequence[Call]) -> str:
    return f"<|tool_call|>[{', '.join(objects(calls))}]<|end_of_text|>"


def phi4_mini(calls: Sequence[Call]) -> str:
    return f"functools[{', '.join(objects(calls))}]"


def phi4_mini_tokens(calls: Sequence[Call]) -> str:
    return f"<|tool_call|>[{', '.join(objects(calls))}]<|/tool_call|><|end|>"


def plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def glm45(calls: Sequence[Call]) -> str:
    def call(name: str, given: dict[str, Any]) -> str:
        members = "".join(
            f"<arg_key>{key}</arg_key>\n<arg_value>{plain(one)}</arg_value>\n" for key, one in given.items()
        )
        return f"<tool_call>{name}\n{members}</tool_call>"

    return "\n".join(call(*one) for one in calls)


def qwen3_coder(calls: Sequence[Call]) -> str:
    def call(name: str, given: dict[str, Any]) -> str:
        members = "".join(f"<parameter={key}>\n{plain(one)}\n</parameter>\n" for key, one in given.items())
        return f"<tool_call>\n<function={name}>\n{members}</function>\n</tool_call>"

    return "\n".join(call(*one) for one in calls)


def kimi_k2(calls: Sequence[Call]) -> str:
    inner = "".join(
        f"<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{json.dumps(given)}<|tool_call_end|>"
        for index, (name, given) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|><|im_end|>"


def gpt_oss(calls: Sequence[Call]) -> str:
    return "<|start|>assistant".join(
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{json.dumps(given)}<|call|>"
        for name, given in calls
    )


FORMATS: list[tuple[str, Callable[[Sequence[Call]], str]]] = [
    ("hermes", hermes), ("llama3_json", llama), ("llama3_json", python_tag), ("pythonic", pythonic), ("pythonic", llama4),
    ("mistral", mistral), ("mistral", mistral_v11), ("mistral_v11", mistral_v7), ("deepseek_v3", deepseek_v3),
    ("deepseek_v31", deepseek_v31), ("gemma", gemma), ("granite", granite), ("phi4_mini", phi4_mini),
    ("phi4_mini", phi4_mini_tokens), ("glm45", glm45), ("qwen3_coder", qwen3_coder), ("kimi_k2", kimi_k2),
    ("gpt_oss", gpt_oss),
]  # fmt: skip
IDS = [write.__name__ for _, write in FORMATS]

MARKS = {
    "hermes": ["<tool_call>", "</tool_call>"],
    "llama3_json": ["<|python_tag|>", '{"name": "', "; "],
    "pythonic": ["<|python_start|>", "<|python_end|>", "[f(", "'", "\\"],
    "mistral": ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
    "mistral_v11": ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
    "deepseek_v3": ["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "```", "<｜tool▁call▁end｜>"],
    "deepseek_v31": ["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁calls▁end｜>"],
    "gemma": ["<start_function_call>", "<end_function_call>", "<escape>", "call:f{"],
    "granite": ["<|tool_call|>", "<tool_call>", "["],
    "phi4_mini": ["functools[", "functools", "<|tool_call|>", "<|/tool_call|>"],
    "glm45": ["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>"],
    "qwen3_coder": ["<tool_call>", "</tool_call>", "<function=f>", "<parameter=a>", "</function>"],
    "kimi_k2": [
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
    ],
    "gpt_oss": ["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "to=f", "analysis", "final", "<|constrain|>"],
}
OTHER_MARKS = [
    "<think>",
    "</think>",
    "<|im_end|>",
    "<|eot_id|>",
    "[THINK]",
    "[/THINK]",
    "Here is my response:",
    "{",
    "}",
    '"',
    "\n",
]

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)
CHARACTERS = st.characters(exclude_categories=["Cs"])


def values(format_name: str, *, inner: bool = True) -> st.SearchStrategy[Any]:
    """Values of arguments. Formats without quotes have marks that a string cannot contain."""
    quoted = format_name not in ("gemma", "gpt_oss")

    def fits(text: str) -> bool:
        return quoted or ("<escape>" not in text and "<|" not in text)

    marks = [mark for mark in (*MARKS[format_name], *OTHER_MARKS) if fits(mark)]
    text = st.lists(st.sampled_from(marks) | st.text(CHARACTERS, max_size=8), max_size=4).map("".join)
    text = text.filter(fits)  # free text draws from this file's strings, too
    scalar = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
    return st.recursive(
        scalar, lambda one: st.lists(one, max_size=3) | st.dictionaries(text, one, max_size=3), max_leaves=8
    )


def arguments(format_name: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(NAMES, values(format_name), max_size=4)


def call_lists(format_name: str) -> st.SearchStrategy[list[Call]]:
    return st.lists(st.tuples(NAMES, arguments(format_name)), min_size=1, max_size=3)


def tools(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Definitions that say of each argument whether it is a string; the first call of a name counts."""
    kinds: dict[str, dict[str, Any]] = {}
    for name, given in calls:
        known = kinds.setdefault(name, {})
        for key, one in given.items():
            known.setdefault(
                key, {"type": "string"} if isinstance(one, str) else {"type": ["object", "array", "number"]}
            )
    return [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": known}}}
        for name, known in kinds.items()
    ]


@st.composite
def mixtures(draw: st.DrawFn, format_name: str, write: Callable[[Sequence[Call]], str]) -> str:
    """Text, calls, calls cut short, and marks in any order."""
    piece = st.one_of(
        st.text(CHARACTERS, max_size=10),
        st.sampled_from([*MARKS[format_name], *OTHER_MARKS]),
        st.sampled_from([*MARKS[format_name], *OTHER_MARKS]).flatmap(lambda mark: st.integers(0, len(mark)).map(lambda size: mark[:size])),
        call_lists(format_name).map(write),
        call_lists(format_name).map(write).flatmap(lambda text: st.integers(0, len(text)).map(lambda size: text[:size])),
    )  # fmt: skip
    return "".join(draw(st.lists(piece, max_size=6)))
