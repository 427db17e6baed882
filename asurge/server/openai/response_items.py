"""The output of ``/v1/responses``: items that grow, and the events that report it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from asurge.parsing import Content, Reasoning, ToolCallArguments, ToolCallStart
from asurge.server.chat.output import CustomCallInput, CustomCallStart, OutputEvent

_PARTS = {
    "message": ("output_text", "response.output_text"),
    "reasoning": ("reasoning_text", "response.reasoning_text"),
}


class Items:
    """Output items of an answer: a stretch of reasoning, a message, a call. The same events make the whole and the stream.

    Args:
        call_id: the id of a call.
    """

    def __init__(self, call_id: Callable[[ToolCallStart], str]) -> None:
        self._call_id = call_id
        self.items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None
        self._key = ""
        self._number = 0
        self._logprobs = list[Any]()

    def take(self, events: Sequence[OutputEvent], logprobs: Sequence[Any] = ()) -> list[bytes]:
        """Take events in; returns those of the stream.

        Args:
            logprobs: of the tokens that brought the events: they go to the message that is open then, or to the next.
        """
        self._logprobs += logprobs
        data: list[bytes] = []
        for event in events:
            match event:
                case Content(text):
                    data += self._text("message", text)
                case Reasoning(text):
                    data += self._text("reasoning", text)
                case CustomCallStart():
                    item = {"type": "custom_tool_call", "id": _id("ctc"), "call_id": self._call_id(event), "name": event.name, "input": "", "status": "in_progress"}  # fmt: skip
                    data += self._begin(f"call {event.index}", item)
                case CustomCallInput(text=text):
                    if self._open is not None:
                        self._open["input"] += text
                        data.append(self._at_item("response.custom_tool_call_input.delta", delta=text))
                case ToolCallStart():
                    item = {"type": "function_call", "id": _id("fc"), "call_id": self._call_id(event), "name": event.name, "arguments": "", "status": "in_progress"}  # fmt: skip
                    data += self._begin(f"call {event.index}", item)
                case ToolCallArguments(text=text):
                    if self._open is not None:
                        self._open["arguments"] += text
                        data.append(self._at_item("response.function_call_arguments.delta", delta=text))
        return data

    def close(self, status: str = "completed") -> list[bytes]:
        """End the item that is open."""
        item, data = self._open, list[bytes]()
        if item is None:
            return data
        if item["type"] == "function_call":
            body = {"arguments": item["arguments"], "name": item["name"]}
            data.append(self._at_item("response.function_call_arguments.done", **body))
        elif item["type"] == "custom_tool_call":
            data.append(self._at_item("response.custom_tool_call_input.done", input=item["input"]))
        else:
            kind, name = _PARTS[item["type"]]
            part = item["content"][0]
            own: dict[str, Any] = {}
            if kind == "output_text":
                part["logprobs"] += self._taken_logprobs()
                own = {"logprobs": part["logprobs"]}
            data.append(self._at_item(f"{name}.done", content_index=0, text=part["text"], **own))
            data.append(self._at_item("response.content_part.done", content_index=0, part=part))
        item["status"] = status
        data.append(self.event("response.output_item.done", output_index=len(self.items) - 1, item=item))
        self._open, self._key = None, ""
        return data

    def event(self, kind: str, **body: Any) -> bytes:
        """The next event of the stream."""
        data = msgspec.json.encode({"type": kind, "sequence_number": self._number, **body})
        self._number += 1
        return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)

    def _text(self, kind: str, text: str) -> list[bytes]:
        data = []
        part_kind, name = _PARTS[kind]
        if self._key != kind:
            part: dict[str, Any] = {"type": part_kind, "text": ""}
            if kind == "message":
                part |= {"annotations": [], "logprobs": []}
                item: dict[str, Any] = {
                    "type": kind,
                    "id": _id("msg"),
                    "role": "assistant",
                    "status": "in_progress",
                    "content": [],
                }
            else:
                item = {"type": kind, "id": _id("rs"), "summary": [], "status": "in_progress", "content": []}
            data += self._begin(kind, item)
            item["content"] = [part]
            data.append(self._at_item("response.content_part.added", content_index=0, part=part))
        assert self._open is not None
        self._open["content"][0]["text"] += text
        own: dict[str, Any] = {}
        if kind == "message":
            own = {"logprobs": self._taken_logprobs()}
            self._open["content"][0]["logprobs"] += own["logprobs"]
        data.append(self._at_item(f"{name}.delta", content_index=0, delta=text, **own))
        return data

    def _taken_logprobs(self) -> list[Any]:
        taken, self._logprobs = self._logprobs, []
        return taken

    def _begin(self, key: str, item: dict[str, Any]) -> list[bytes]:
        data = self.close()
        self.items.append(item)
        self._open, self._key = item, key
        data.append(self.event("response.output_item.added", output_index=len(self.items) - 1, item=item))
        return data

    def _at_item(self, kind: str, **body: Any) -> bytes:
        assert self._open is not None
        return self.event(kind, item_id=self._open["id"], output_index=len(self.items) - 1, **body)


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"
