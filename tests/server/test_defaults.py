"""What checkpoints say about sampling, and where clients put a schema."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from asurge.server.schema.chat import ChatCompletionRequest
from asurge.server.schema.sampling import ResponseFormat
from asurge.text import load_tokenizer
from tests.server.chat import ASK
from tests.server.clients import CHAT

GENERATION: dict[str, tuple[Any, dict[str, float]]] = {
    "all": ({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": True}, {"temperature": 0.6, "top_k": 20, "top_p": 0.95}),
    "some": ({"temperature": 1, "top_k": None}, {"temperature": 1}),
    "nonsense": ({"temperature": "hot", "top_k": 2.5, "top_p": 0, "eos_token_id": 1}, {}),
    "no object": ([], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", GENERATION)
def test_how_a_checkpoint_wants_to_be_drawn(tiny_folder: Path, tmp_path: Path, case: str) -> None:
    given, wanted = GENERATION[case]
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps(given))
    defaults = load_tokenizer(folder).sampling_defaults
    assert defaults == wanted
    asked = msgspec.convert({"messages": ASK, "top_p": 0.5}, ChatCompletionRequest).params(defaults)
    assert (asked.temperature, asked.top_p) == (wanted.get("temperature", 1.0), 0.5)


SCHEMA = {"type": "object", "properties": {"only": {"const": 1}}, "required": ["only"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"type": "json_object", "schema": SCHEMA}, {"json": SCHEMA}),
        ({"type": "json_object"}, {"json_object": True}),
        ({"type": "json_schema", "schema": SCHEMA}, {"json": SCHEMA}),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, {"json": SCHEMA}),
        ({"type": "text", "schema": SCHEMA}, {}),
    ],
)
def test_where_a_schema_is(given: dict[str, Any], form: dict[str, Any]) -> None:
    assert msgspec.convert(given, ResponseFormat).form() == form


async def test_an_object_with_a_schema(http: aiohttp.ClientSession) -> None:
    form = {"type": "json_object", "schema": SCHEMA}
    async with http.post(CHAT, json={"messages": ASK, "max_tokens": 60, "response_format": form}) as response:
        assert json.loads((await response.json())["choices"][0]["message"]["content"]) == {"only": 1}
