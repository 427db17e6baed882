"""The formats by name, and which of them a model uses."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import TypeVar

from asurge.errors import ConfigError
from asurge.parsing.formats.base import ToolFormat
from asurge.parsing.formats.harmony import GptOss
from asurge.parsing.formats.objects import Granite, Hermes, Llama3Json, Mistral, MistralNamed, Phi4Mini
from asurge.parsing.formats.python import Gemma, Pythonic
from asurge.parsing.formats.tokens import DeepSeekV3, DeepSeekV31, KimiK2
from asurge.parsing.formats.xml import Glm45, Qwen3Coder
from asurge.parsing.reasoning import ReasoningFormat

T = TypeVar("T")

_TOOLS: tuple[tuple[ToolFormat, tuple[str, ...]], ...] = (
    (Hermes(), ("hermes", "qwen", "qwen25", "granite4")),
    (Llama3Json(), ("llama3_json", "llama4_json")),
    (Pythonic(), ("pythonic", "llama4_pythonic", "olmo3")),
    (Mistral(), ("mistral",)),
    (MistralNamed(), ("mistral_v11",)),
    (DeepSeekV3(), ("deepseek_v3",)),
    (DeepSeekV31(), ("deepseek_v31",)),
    (Gemma(), ("gemma", "functiongemma")),
    (Granite(), ("granite",)),
    (Phi4Mini(), ("phi4_mini", "phi4_mini_json")),
    (Glm45(), ("glm45", "glm47")),
    (KimiK2(), ("kimi_k2",)),
    (GptOss(), ("gpt_oss", "openai")),
    (Qwen3Coder(), ("qwen3_coder", "qwen3_xml")),
)

_THINK = ReasoningFormat(("<think>",), ("</think>",))
_SECTIONS = ("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>")
_REASONING: tuple[tuple[ReasoningFormat, tuple[str, ...]], ...] = (
    # After the files with these names among vLLM's reasoning parsers.
    (_THINK, ("think", "deepseek_r1", "deepseek_v3", "qwen3", "glm45", "ernie45", "step3", "olmo3", "minimax_m2")),
    (ReasoningFormat(("[THINK]",), ("[/THINK]",), needs_special_tokens=True), ("mistral",)),
    (
        ReasoningFormat(
            ("Here is my thought process:", "Here's my thought process:", "<think>"),
            ("Here is my response:", "Here's my response:", "</think>"),
        ),
        ("granite",),
    ),
    (ReasoningFormat(("<think>", "◁think▷"), ("</think>", "◁/think▷"), breaks=_SECTIONS), ("kimi", "kimi_k2")),
    (ReasoningFormat(("<seed:think>",), ("</seed:think>",)), ("seed_oss",)),
    (
        ReasoningFormat(("<|begin_of_thought|>",), ("<|end_of_thought|>",), needs_special_tokens=True),
        ("open_thoughts",),
    ),
    (ReasoningFormat((), (), needs_special_tokens=True, channels=True), ("gpt_oss", "openai_gptoss")),
)

_tools = {name: fmt for fmt, names in _TOOLS for name in names}
_reasoning = {name: fmt for fmt, names in _REASONING for name in names}

TOOL_FORMATS: Mapping[str, ToolFormat] = types.MappingProxyType(_tools)
REASONING_FORMATS: Mapping[str, ReasoningFormat] = types.MappingProxyType(_reasoning)


def register_tool_format(name: str, fmt: ToolFormat) -> None:
    """Add a format under a new name.

    Raises:
        ConfigError: the name is taken.
    """
    _register(_tools, name, fmt)


def register_reasoning_format(name: str, fmt: ReasoningFormat) -> None:
    """Add a format under a new name.

    Raises:
        ConfigError: the name is taken.
    """
    _register(_reasoning, name, fmt)


def _register(known: dict[str, T], name: str, fmt: T) -> None:
    if name in known:
        raise ConfigError(f"the format {name!r} is registered already: choose another name")
    known[name] = fmt


_TOOL_MARKS = (
    # Marks that are part of other marks come later.
    ("<|channel|>", "gpt_oss"),
    ("<start_function_call>", "gemma"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<function=", "qwen3_coder"),
    ("<arg_key>", "glm45"),
    ("[ARGS]", "mistral_v11"),
    ("[TOOL_CALLS]", "mistral"),
    ("<｜tool▁sep｜>", "deepseek_v3"),
    ("functools[", "phi4_mini"),
    ("<|/tool_call|>", "phi4_mini"),
    ("<|/tool|>", "phi4_mini"),
    ('"parameters": dictionary of argument name', "llama3_json"),
    ("<|python_start|>", "pythonic"),
    ("<tool_call>", "hermes"),
    ("<|tool_call|>", "granite"),
    ("<|python_tag|>", "llama3_json"),
    ("[func_name1(", "pythonic"),
)
_REASONING_MARKS = (
    ("<|channel|>", "gpt_oss"),
    ("[THINK]", "mistral"),
    ("<seed:think>", "seed_oss"),
    ("◁think▷", "kimi"),
    ("my thought process:", "granite"),
    ("</think>", "think"),
)


def detect(chat_template: str | None) -> tuple[str | None, str | None]:
    """Names of the formats of tool calls and of reasoning, by the marks in a chat template; None where there are none."""
    template = chat_template or ""
    tools = next((name for mark, name in _TOOL_MARKS if mark in template), None)
    reasoning = next((name for mark, name in _REASONING_MARKS if mark in template), None)
    if tools == "deepseek_v3" and "```json" not in template:
        tools = "deepseek_v31"
    if tools == "kimi_k2" and reasoning == "think":
        reasoning = "kimi"
    return tools, reasoning
