"""Pausing the collector: for everybody's time, and as the host had it afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asurge import Engine
from asurge.engine import assembly
from asurge.errors import AsurgeError
from asurge.threads import collector_paused
from tests.conftest import TINY


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    """A host whose collector runs."""
    gc.enable()
    yield
    gc.enable()


def test_the_collector_is_paused_until_the_last_has_ended() -> None:
    one, other = collector_paused(), collector_paused()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert not gc.isenabled()
    other.__exit__(None, None, None)
    assert gc.isenabled()


def test_a_failure_ends_the_pause() -> None:
    with pytest.raises(KeyError), collector_paused():
        raise KeyError
    assert gc.isenabled()


def test_a_host_that_has_turned_it_off_keeps_it_off() -> None:
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


@pytest.mark.parametrize("is_good", [True, False])
async def test_no_full_collection_holds_the_loop_while_weights_are_read(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, is_good: bool
) -> None:
    opened, seen = assembly.open_model, list[bool]()

    def open_model(*args: Any, **options: Any) -> Any:
        seen.append(gc.isenabled())
        if not is_good:
            raise AsurgeError("no checkpoint")
        return opened(*args, **options)

    async with Engine(str(tiny_folder), **TINY) as engine:
        monkeypatch.setattr(assembly, "open_model", open_model)
        if is_good:
            await engine.update_model_weights(str(tiny_folder))
        else:
            with pytest.raises(AsurgeError, match="no checkpoint"):
                await engine.update_model_weights(str(tiny_folder))
    assert seen == [False]
    assert gc.isenabled()
