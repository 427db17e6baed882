"""The tools of a request: which of them the model is told of, and what binds the text of its calls."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal

import msgspec

from asurge.json_schema import PLACE, Relaxed
from asurge.parsing import ToolFormat
from asurge.parsing.custom import INPUT
from asurge.server.errors import ApiError
from asurge.server.schema.chat import ChatCompletionRequest, CustomTool, Function, Tool, ToolChoice

MAX_TOOLS = 128
_FREE = {"type": "object"}


@dataclasses.dataclass(frozen=True, slots=True)
class ToolUse:
    """Tools of a request, and how they may be used.

    Attributes:
        tools: those that the model is told of; None: none.
        forced: those of which one must be called.
        places: where the request has the schemas of its tools, by the tools' names.
        parallel: whether an answer may have several calls.
        custom: the names of those that are called with a text.
        relaxed: what formats of custom tools ask for, and grammars of calls cannot say.
    """

    tools: list[dict[str, Any]] | None = None
    forced: Sequence[dict[str, Any]] = ()
    parallel: bool = True
    places: Mapping[str, str] = dataclasses.field(default_factory=dict)
    custom: Set[str] = frozenset()
    relaxed: Sequence[str] = ()

    @property
    def bound(self) -> list[dict[str, Any]]:
        """The functions whose arguments must fit their schemas."""
        strict = (tool for tool in self.tools or () if tool["function"].get("strict"))
        return [tool["function"] for tool in self.forced or strict]


def tool_use(asked: ChatCompletionRequest) -> ToolUse:
    """Read a request's tools and its choice among them; functions are what they used to be called.

    Tools that are neither functions nor custom are left out.

    Raises:
        ApiError: there are too many, one has no schema, or the choice does not go together with them.
    """
    tools, choice = asked.tools, asked.tool_choice
    if asked.functions is not None:
        if tools is not None:
            raise ApiError("functions are the old form of tools: use only one of them", param="functions")
        tools, choice = [Tool(function=one) for one in asked.functions], asked.function_call
    if len(tools or ()) > MAX_TOOLS:
        raise ApiError(f"tools has {len(tools or ())} entries: at most {MAX_TOOLS} are allowed", param="tools")
    places = dict[str, str]()
    custom, notes = set[str](), list[str]()
    for at, tool in enumerate(tools or ()):
        if tool.custom is not None:
            custom.add(tool.custom.name)
            places[tool.custom.name] = f"tools[{at}].custom.format"
            if _grammar_of(tool.custom)[0] == "lark":
                notes.append(f"lark grammar of {tool.custom.name}")
        elif tool.function is not None:
            place = places[tool.function.name] = f"tools[{at}].function.parameters"
            _check_schema(tool.function.parameters or {}, place)
    mode, names = _choice(choice)
    told = listed(tools) or []
    if names is not None:
        for name in names:
            if all(tool["function"]["name"] != name for tool in told):
                raise ApiError(f"tool_choice names {name[:100]!r}, which is not among tools", param="tool_choice")
    allowed = told if names is None else [tool for tool in told if tool["function"]["name"] in names]
    parallel = asked.parallel_tool_calls is not False
    if mode in ("required", "named") and not allowed:
        raise ApiError("tool_choice needs functions or custom tools among tools", param="tool_choice")
    if mode == "none" or not allowed:
        return ToolUse(parallel=parallel)
    if mode == "named":
        return ToolUse(told, allowed, False, places, custom, notes)
    return ToolUse(allowed, allowed if mode == "required" else (), parallel, places, custom, notes)


def listed(tools: Sequence[Tool] | None) -> list[dict[str, Any]] | None:
    """Functions as templates and formats know them; a custom tool is one with a text as its argument."""
    functions = [
        one.function if one.custom is None else _function_for(one.custom)
        for one in tools or ()
        if one.function is not None or one.custom is not None
    ]
    return [{"type": "function", "function": msgspec.to_builtins(one)} for one in functions] or None


def _function_for(tool: CustomTool) -> Function:
    """The function that stands for a custom tool. A regular expression binds the text; other grammars are only described."""
    syntax, definition = _grammar_of(tool)
    text: dict[str, Any] = {"type": "string"}
    description = tool.description
    if syntax == "regex":
        text["pattern"] = f"^(?:{definition})$"
    elif syntax is not None:
        told = f"The input must follow this {syntax} grammar:\n{definition}"
        description = f"{description}\n\n{told}" if description else told
    schema = {"type": "object", "properties": {INPUT: text}, "required": [INPUT], "additionalProperties": False}
    return Function(name=tool.name, description=description, parameters=schema, strict=syntax == "regex" or None)


def _grammar_of(tool: CustomTool) -> tuple[str | None, str]:
    """The syntax and the definition of the grammar that a tool's input must follow, as chat and responses write them.

    Raises:
        ApiError: it has neither form.
    """
    given = tool.format or {}
    if given.get("type", "text") == "text":
        return None, ""
    grammar = given.get("grammar", given)
    match grammar:
        case {"syntax": "lark" | "regex" as syntax, "definition": str(definition)} if given["type"] == "grammar":
            return syntax, definition
    raise ApiError(
        f"the format of tool {tool.name[:100]!r} must be text, or a grammar with a syntax (lark or regex) and a definition",
        param="tools",
    )


def _choice(
    choice: str | ToolChoice | None,
) -> tuple[Literal["none", "auto", "required", "named"], list[str] | None]:
    """How to choose, and among which; None: among all."""
    match choice:
        case None:
            return "auto", None
        case "none" | "auto" | "required":
            return choice, None
        case ToolChoice(type="none" | "auto" | "required" as mode):
            return mode, None
        case ToolChoice(type="allowed_tools"):
            return _allowed(choice)
        case ToolChoice(type="function" | "custom") if (name := choice.named) is not None:
            return "named", [name]
    raise ApiError(
        "tool_choice must be none, auto, required, allowed_tools, or name a function or custom tool",
        param="tool_choice",
    )


def _allowed(choice: ToolChoice) -> tuple[Literal["auto", "required"], list[str]]:
    given = choice.allowed_tools or choice
    names = [one.named for one in given.tools or () if one.type in ("function", "custom")]
    return given.mode or "auto", [name for name in names if name is not None]


def _check_schema(schema: Mapping[str, Any], where: str) -> None:
    """Refuse what cannot describe a tool's parameters to any of its readers: grammars, parsers and templates."""
    for name in ("properties", "$defs", "definitions"):
        if not isinstance(schema.get(name) or {}, Mapping):
            raise ApiError(f"{where}: {name} must be an object", param=where, code="invalid_value")
    required = schema.get("required") or []
    if not isinstance(required, list) or not all(isinstance(one, str) for one in required):
        raise ApiError(f"{where}: required must be a list of names", param=where, code="invalid_value")


def bound_form(form: Mapping[str, Any], tool_format: ToolFormat, use: ToolUse) -> dict[str, Any]:
    """Return the structured output that an answer must have, as arguments of `asurge.GuidedDecodingParams`.

    The request's own form binds an answer in words, the schemas of tools bind calls.

    Args:
        form: the request's own.

    Raises:
        ApiError: the model's calls cannot be written by a grammar, and would have to be.
    """
    if use.forced:
        return {"grammar": _grammar(tool_format, [_with_place(tool, use) for tool in use.forced], use)}
    tools = use.tools or ()
    # All share the marks, so tools that are not strict are listed too, with any arguments.
    bound = [
        _with_place(tool, use)
        if tool["function"].get("strict")
        else {**tool, "function": {**tool["function"], "parameters": _FREE}}
        for tool in tools
    ]
    if form and "structural_tag" not in form:
        return {**form, "alternative": _grammar(tool_format, bound, use)}
    tags = tool_format.tags(bound) if use.bound else None
    if tags is None:
        return dict(form)
    if form:  # what the request says of its own tags comes first
        own = form["structural_tag"]
        tags = {name: [*own[name], *tags[name]] for name in ("structures", "triggers")}
    return {"structural_tag": tags}


def _with_place(tool: dict[str, Any], use: ToolUse) -> dict[str, Any]:
    """A tool whose schema says where it comes from, for errors."""
    function = tool["function"]
    schema = {"type": "object", "properties": {}} if function.get("parameters") is None else function["parameters"]
    return {**tool, "function": {**function, "parameters": {**schema, PLACE: use.places[function["name"]]}}}


def _grammar(tool_format: ToolFormat, tools: Sequence[dict[str, Any]], use: ToolUse) -> str:
    grammar = tool_format.grammar(tools, parallel=use.parallel)
    if grammar is None:
        raise ApiError(
            "this model's calls can neither be forced nor come beside a form: use tool_choice='auto' without a form",
            param="tool_choice",
        )
    return grammar


def relaxed(form: Mapping[str, Any], use: ToolUse | None = None) -> list[str]:
    """List what schemas that bind an answer require and grammars cannot express: keywords, with their places.

    Args:
        form: the request's own, as arguments of `asurge.GuidedDecodingParams`.
    """
    notes = list[str]()
    schema = form.get("json")
    if isinstance(schema, str):
        with contextlib.suppress(ValueError, RecursionError):  # it is refused elsewhere
            schema = json.loads(schema)
    if isinstance(schema, Mapping) and not (use is not None and use.forced):
        notes += Relaxed(schema).notes
    if use is not None:
        notes += use.relaxed
    for function in use.bound if use is not None else ():
        notes += (f"{note} of {function['name']}" for note in Relaxed(function.get("parameters") or {}).notes)
    return notes
