"""Tokenizers, grammars and callbacks that fail, which must fail only the calls that they are made for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import pytest
from anyio import CapacityLimiter

from asurge import Engine, SamplingParams
from asurge.errors import RequestFailedError
from asurge.structured import GuidedDecodingParams
from asurge.text import Tokenizer
from asurge.threads import run_in_thread
from tests.fakes import Panic
from tests.idle import settle

MESSAGES = [{"role": "user", "content": "Hi"}]
VERBS: dict[str, Callable[[Engine], Awaitable[object]]] = {
    "a short prompt": lambda engine: engine.generate("a", use_tqdm=False),
    "a long prompt": lambda engine: engine.generate("word " * 2000, use_tqdm=False),
    "a batch": lambda engine: engine.generate(["a", "b"], use_tqdm=False),
    "a stream": lambda engine: anext(engine.stream("a")),
    "a conversation": lambda engine: engine.chat(MESSAGES),
    "beam search": lambda engine: engine.beam_search("a"),
    "an embedding": lambda engine: engine.embed("a", use_tqdm=False),
}


def panic(*_: Any, **__: Any) -> NoReturn:
    raise Panic("in Rust")


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
async def test_a_tokenizer_that_panics_is_an_error_for_its_caller(
    tiny: Engine, verb: Callable[[Engine], Awaitable[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        for name in ("encode", "render"):
            patched.setattr(Tokenizer, name, panic)
        with pytest.raises(RequestFailedError, match="in Rust"):
            await verb(tiny)
    assert tiny.failure is None
    await settle(tiny)


async def test_a_grammar_that_panics_is_an_error_for_its_caller(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny._life.admission is not None
    with monkeypatch.context() as patched:
        patched.setattr(tiny._life.admission.inputs._constraints._grammars, "compile", panic)
        with pytest.raises(RequestFailedError, match="in Rust"):
            await tiny.generate("a", SamplingParams(guided_decoding=GuidedDecodingParams(regex="a+")), use_tqdm=False)
    await settle(tiny)


@pytest.mark.parametrize("error", [ValueError("mine"), Panic("in Rust")], ids=repr)
async def test_a_callback_that_fails_is_an_error_for_its_caller(tiny: Engine, error: BaseException) -> None:
    def fail(params: SamplingParams, about: dict[str, Any]) -> NoReturn:
        raise error

    tiny.set_sampling_params_callback(fail)
    try:
        with pytest.raises(ValueError if isinstance(error, ValueError) else RequestFailedError, match=str(error)):
            await tiny.generate("a", use_tqdm=False)
    finally:
        tiny.set_sampling_params_callback(None)
    assert (await tiny.generate("a", SamplingParams(max_tokens=2), use_tqdm=False))[0].finished
    await settle(tiny)


async def test_a_panic_in_a_thread_comes_as_it_is() -> None:
    with pytest.raises(Panic):
        await run_in_thread(panic, CapacityLimiter(1))
