"""Texts that take a tokenizer much memory are counted a few at a time."""

from __future__ import annotations

import threading
from typing import Any

import aiohttp
import anyio
import pytest

from asurge import Engine
from asurge.server import make_app
from asurge.server.state import STATE
from asurge.text import Tokenizer
from tests.server.conftest import Running

LONG = "word " * 10_000
MESSAGES = [{"role": "user", "content": LONG}]
ROUTES: dict[str, dict[str, Any]] = {
    "/tokenize": {"prompt": LONG},
    "/v1/count_tokens": {"text": LONG},
    "/v1/messages/count_tokens": {"model": "demo", "messages": MESSAGES},
    "/detokenize": {"tokens": [5] * 20_000},
}


class Work:
    """Holds the tokenizer, and counts who uses it at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        self.lock, self.go = threading.Lock(), threading.Event()
        for name in ("encode", "decode"):
            self._hold(name, monkeypatch)

    def _hold(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        work = getattr(Tokenizer, name)

        def held(tokenizer: Tokenizer, given: Any, **named: Any) -> Any:
            if len(given) < 10_000:
                return work(tokenizer, given, **named)
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            assert self.go.wait(30)
            with self.lock:
                self.now -= 1
            return work(tokenizer, given, **named)

        monkeypatch.setattr(Tokenizer, name, held)


@pytest.mark.parametrize("path", ROUTES)
async def test_large_texts_take_turns_and_small_ones_do_not_wait(
    demo: Engine, running: Running, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(demo)
    places, work = app[STATE].large_texts, Work(monkeypatch)
    url = await running.start(app)
    answers: list[int] = []

    async def ask(http: aiohttp.ClientSession) -> None:
        async with http.post(path, json=ROUTES[path]) as answer:
            answers.append(answer.status)

    async with aiohttp.ClientSession(url) as http, anyio.create_task_group() as tasks:
        try:
            for _ in range(6):
                tasks.start_soon(ask, http)
            with anyio.fail_after(30):
                while places.statistics().tasks_waiting < 4:
                    await anyio.sleep(0.001)
                async with http.post("/tokenize", json={"prompt": "a few words"}) as answer:
                    assert answer.status == 200
        finally:
            work.go.set()
    assert answers == [200] * 6
    assert work.most == places.total_tokens == 2
    assert places.borrowed_tokens == 0
