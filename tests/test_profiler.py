"""What traces of steps are taken with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest

from asurge import Engine
from asurge.errors import ConfigError
from asurge.observe import profile


async def test_tracer_levels_reach_the_profiler(tiny: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder, *, profiler_options: given.append(profiler_options))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    default = jax.profiler.ProfileOptions()
    assert await profile(tiny, tmp_path, timeout_s=0.001, host_tracer_level=3, python_tracer_level=0) == 0
    assert await profile(tiny, tmp_path, timeout_s=0.001) == 0
    levels = [(options.host_tracer_level, options.python_tracer_level) for options in given]
    assert levels == [(3, 0), (default.host_tracer_level, default.python_tracer_level)]


@pytest.mark.parametrize("level", [-1, 4, 1.0, True, "1"])
@pytest.mark.parametrize("name", ["host_tracer_level", "python_tracer_level"])
async def test_a_level_out_of_range_is_refused_before_a_trace_begins(
    tiny: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, level: Any
) -> None:
    started: list[object] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *arguments, **options: started.append(arguments))
    with pytest.raises(ConfigError, match=rf"{name}=.* must be an integer from 0 to"):
        await profile(tiny, tmp_path, **{name: level})
    assert not started
