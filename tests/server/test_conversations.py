"""What the engine is asked: conversations of all APIs, as chat templates know them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest

from asurge import Engine, SamplingParams
from asurge.server.conversation import template_messages
from asurge.server.schema.chat import Message
from tests.server.chat import ASK
from tests.server.clients import CHAT
from tests.server.scripted import Scripted


@dataclasses.dataclass
class Heard:
    """What the engine was asked last."""

    messages: Sequence[Any] = ()
    params: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    template_kwargs: Any = None

    @property
    def said(self) -> list[tuple[str, str | None]]:
        return [(one["role"], one["content"]) for one in self.messages]


@pytest.fixture
def heard(demo: Engine, monkeypatch: pytest.MonkeyPatch) -> Heard:
    """The demo model's engine only listens."""
    found = Heard()

    async def chat(messages: Any, params: SamplingParams, *, template_kwargs: Any, **_: Any) -> Scripted:
        found.messages, found.params, found.template_kwargs = messages, params, template_kwargs
        return Scripted("Yes.")

    monkeypatch.setattr(demo, "chat", chat)
    return found


async def post(http: aiohttp.ClientSession, path: str, **body: Any) -> Any:
    async with http.post(path, json=body) as response:
        told = await response.json()
        assert response.status == 200, told
        return told


async def test_a_developer_speaks_as_the_system(http: aiohttp.ClientSession, heard: Heard) -> None:
    """Templates that do not know the role leave out what it says, or refuse it."""
    rules = {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]}
    await post(http, CHAT, messages=[rules, *ASK, rules])
    assert heard.said == [("system", "Be brief."), ("user", ASK[0]["content"]), ("system", "Be brief.")]
    knows = "{% if message.role == 'developer' %}{{ message.content }}{% endif %}"
    (kept,) = template_messages([Message(role="developer", content="Be brief.")], knows)
    assert kept["role"] == "developer"


async def test_the_system_speaks_once_at_the_beginning(http: aiohttp.ClientSession, heard: Heard) -> None:
    first, second = {"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be polite."}
    wanted = [("system", "Be brief.\n\nBe polite."), ("user", "Hi")]
    await post(http, CHAT, messages=[first, second, {"role": "user", "content": "Hi"}])
    assert heard.said == wanted
    kept = await post(http, "/v1/responses", instructions="Be brief.", input=[second, {"role": "user", "content": "Hi"}])  # fmt: skip
    assert heard.said == wanted
    await post(http, "/v1/responses", input="And?", previous_response_id=kept["id"])
    assert heard.said == [("system", "Be polite."), ("user", "Hi"), ("assistant", "Yes."), ("user", "And?")]


async def test_what_is_wrong_keeps_its_place(http: aiohttp.ClientSession) -> None:
    rules, image = {"role": "system", "content": "Be brief."}, {"type": "image_url", "image_url": {"url": "x"}}
    async with http.post(CHAT, json={"messages": [rules, rules, {"role": "user", "content": [image]}]}) as response:
        assert (response.status, (await response.json())["error"]["param"]) == (400, "messages[2].content[0]")
