"""Weights that change under a running engine."""

from __future__ import annotations

import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import anyio
import pytest

from asurge import Engine, SamplingParams
from asurge.engine import assembly
from asurge.errors import ConfigError, EngineStateError, ModelLoadError
from asurge.runner import runner, step
from asurge.server import make_app
from tests.checkpoints import write_tiny
from tests.conftest import TINY
from tests.idle import settle
from tests.server.clients import TEXT
from tests.server.conftest import Running

PROMPT = "The quick brown fox jumps over the lazy dog, and then it jumps again."
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)


async def said(engine: Engine) -> list[int]:
    return (await engine.stream(PROMPT, GREEDY).wait_finished()).outputs[0].token_ids


async def test_weights_change_under_a_running_engine(tmp_path: Path, tiny_folder: Path, running: Running) -> None:
    """The same tokens as an engine that began with them, also where pages of the old ones were cached; nothing compiles."""
    for name in ("other", "wide"):
        (tmp_path / name).mkdir()
    other = write_tiny(tmp_path / "other", seed=9)
    wide = write_tiny(tmp_path / "wide", hidden_size=128)
    async with Engine(str(other), **TINY) as engine:
        wanted = await said(engine)
    async with Engine(str(tiny_folder), **TINY) as engine:
        before = await said(engine)
        assert before != wanted
        await engine.update_model_weights(str(other))
        assert await said(engine) == wanted
        async with engine.stream(PROMPT, GREEDY):
            with pytest.raises(EngineStateError, match="while no request runs"):
                await engine.update_model_weights(str(tiny_folder))
        await settle(engine)
        for wrong, error in ((str(wide), ConfigError), (str(tmp_path / "none"), ModelLoadError), ("", ConfigError)):
            with pytest.raises(error):
                await engine.update_model_weights(wrong)
        assert await said(engine) == wanted
        url = await running.start(make_app(engine, admin_key="sk-admin-key"))
        admin = {"Authorization": "Bearer sk-admin-key"}
        async with aiohttp.ClientSession(url) as http:
            for folder, status in ((wide, 400), (tiny_folder, 200)):
                async with http.post("/admin/weights", json={"checkpoint": str(folder)}, headers=admin) as response:
                    assert response.status == status, await response.text()
        assert await said(engine) == before
        assert engine.get_metrics_summary()["compilations"] == 0


async def test_the_loop_is_not_held_up_by_an_update(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes long is done in threads: reading, taking the model apart, giving memory back."""
    other = write_tiny(tmp_path, seed=9)
    async with Engine(str(tiny_folder), **TINY) as engine:
        threads: dict[str, set[int]] = {}

        def noted(home: ModuleType, name: str) -> None:
            work = getattr(home, name)

            def work_and_note(*given: Any, **named: Any) -> Any:
                threads.setdefault(name, set()).add(threading.get_ident())
                return work(*given, **named)

            monkeypatch.setattr(home, name, work_and_note)

        for home, name in ((assembly, "open_model"), (assembly, "convert"), (step, "split_model"), (runner, "_delete")):
            noted(home, name)
        await engine.update_model_weights(str(other))
        assert threads.keys() == {"open_model", "convert", "split_model", "_delete"}
        assert all(threading.get_ident() not in found for found in threads.values())


ADMIN = {"Authorization": "Bearer sk-admin-key"}


class Updates:
    """Stands in for `Engine.update_model_weights`: each takes until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = dict[str, anyio.Event](), dict[str, anyio.Event]()
        for name in ("first", "other"):
            self.begun[name], self.go[name] = anyio.Event(), anyio.Event()

    async def update(self, name: str) -> None:
        self.begun[name].set()
        await self.go[name].wait()


async def taken(http: aiohttp.ClientSession) -> bool:
    """Whether the server takes requests."""
    async with http.post(TEXT, json={"prompt": "a", "max_tokens": 1}) as response:
        assert response.status in (200, 503)
        return response.status == 200


async def test_updates_at_once_pause_as_long_as_the_last(
    demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = Updates()
    monkeypatch.setattr(demo, "update_model_weights", updates.update)
    url = await running.start(make_app({"a": demo, "b": demo}, admin_key="sk-admin-key"))
    with anyio.fail_after(20):
        async with aiohttp.ClientSession(url) as http:

            async def update(name: str) -> None:
                async with http.post("/admin/weights", json={"checkpoint": name}, headers=ADMIN) as response:
                    assert response.status == 200
                ended[name].set()

            ended = {name: anyio.Event() for name in updates.go}
            async with anyio.create_task_group() as tasks:
                for name in updates.go:
                    tasks.start_soon(update, name)
                    await updates.begun[name].wait()
                for name in updates.go:
                    assert not await taken(http)
                    updates.go[name].set()
                    await ended[name].wait()
            assert await taken(http)


async def test_a_pause_outlasts_an_update(demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    url = await running.start(make_app(demo, admin_key="sk-admin-key"))
    with anyio.fail_after(20):
        async with aiohttp.ClientSession(url) as http:

            async def told(path: str) -> bool:
                async with http.post(path, headers=ADMIN) as response:
                    return bool((await response.json())["paused"])

            async def update() -> None:
                async with http.post("/admin/weights", json={"checkpoint": "first"}, headers=ADMIN) as response:
                    assert response.status == 200

            for before, meanwhile, after in (([], ["/admin/pause"], False), (["/admin/pause"], ["/admin/resume"], True), ([], [], True)):  # fmt: skip
                updates = Updates()
                monkeypatch.setattr(demo, "update_model_weights", updates.update)
                for path in before:
                    assert await told(path)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(update)
                    await updates.begun["first"].wait()
                    for path in meanwhile:
                        assert await told(path)
                    assert not await taken(http)
                    updates.go["first"].set()
                assert await taken(http) == after
                await told("/admin/resume")
