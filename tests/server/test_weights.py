"""Weights that change under a running engine."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from asurge import Engine, SamplingParams
from asurge.errors import ConfigError, EngineStateError, ModelLoadError
from asurge.server import make_app
from tests.checkpoints import write_tiny
from tests.conftest import TINY
from tests.idle import settle
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
