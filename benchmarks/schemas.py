"""Measure the cost of reading a request, with msgspec and with pydantic: ``python -m benchmarks.schemas``.

Both read the same chat requests into types of the same fields (those of OpenAI's API that the request uses), from bytes.
Prints the medians of repeated runs, in turns, and what each says about a wrong field. pydantic is not a dependency of
asurge: `pip install pydantic` first.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import orjson
from pydantic import BaseModel, ValidationError
from rich.console import Console

from asurge.server.schema.chat import ChatCompletionRequest

_RUNS, _READS = 9, 2000


class Function(BaseModel):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    type: Literal["function"] = "function"
    function: Function


class Part(BaseModel):
    type: str
    text: str | None = None


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None


class Request(BaseModel):
    model: str | None = None
    messages: list[Message]
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[Tool] | None = None


def requests() -> dict[str, bytes]:
    """A short question, a long conversation, and one with many tools."""
    short: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5}
    turn = [{"role": "user", "content": "word " * 100}, {"role": "assistant", "content": "word " * 100}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(10)}}}}  # fmt: skip
    bodies = {"short": short, "20 turns": {**short, "messages": turn * 20}, "30 tools": {**short, "tools": [tool] * 30}}
    return {name: orjson.dumps(body) for name, body in bodies.items()}


def main() -> None:
    console = Console()
    decoder = msgspec.json.Decoder(ChatCompletionRequest)
    readers: dict[str, Callable[[bytes], Any]] = {"msgspec": decoder.decode, "pydantic": Request.model_validate_json}
    for name, body in requests().items():
        took: dict[str, list[float]] = {reader: [] for reader in readers}
        for _ in range(_RUNS):
            for reader, read in readers.items():
                begun = time.perf_counter()
                for _ in range(_READS):
                    read(body)
                took[reader].append((time.perf_counter() - begun) / _READS * 1e6)
        told = ", ".join(f"{reader} {statistics.median(times):.1f} µs" for reader, times in took.items())
        console.print(f"{name} ({len(body)} bytes): {told}")
    wrong = b'{"messages": [{"role": "user", "content": [{"type": 5}]}]}'
    for reader, read in readers.items():
        try:
            read(wrong)
        except (msgspec.ValidationError, ValidationError) as error:
            console.print(f"{reader}: {error}", markup=False)


if __name__ == "__main__":
    main()
