"""A model's text to reasoning, content and tool calls, as it comes."""

from asurge.parsing.events import Content, Event, Reasoning, ToolCallArguments, ToolCallStart
from asurge.parsing.formats.base import ToolFormat
from asurge.parsing.parser import OutputParser
from asurge.parsing.reasoning import ReasoningFormat
from asurge.parsing.registry import (
    REASONING_FORMATS,
    TOOL_FORMATS,
    detect,
    register_reasoning_format,
    register_tool_format,
)

__all__ = [
    "REASONING_FORMATS", "TOOL_FORMATS", "Content", "Event", "OutputParser", "Reasoning", "ReasoningFormat",
    "ToolCallArguments", "ToolCallStart", "ToolFormat", "detect", "register_reasoning_format", "register_tool_format",
]  # fmt: skip
