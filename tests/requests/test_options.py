"""Options of requests beside others (priority, deadline, cache salt), through the whole engine."""

from __future__ import annotations

from typing import Any

import pytest

from asurge import Engine, SamplingParams
from asurge.errors import DeadlineExceededError, InvalidRequestError
from tests.idle import settle

GREEDY = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)


async def test_a_request_past_its_deadline_fails_and_frees_its_pages(engine: Engine) -> None:
    stream = engine.stream("The quick brown fox", GREEDY, deadline_s=0.0)
    with pytest.raises(DeadlineExceededError, match="deadline"):
        await stream.wait_finished()
    failed = engine.get_metrics_summary()["total_failed"]
    with pytest.raises(DeadlineExceededError):
        await engine.generate(["one", "two"], GREEDY, use_tqdm=False, deadline_s=0.0)
    assert engine.get_metrics_summary()["total_failed"] > failed
    await settle(engine)


async def test_a_request_within_its_deadline_is_not_disturbed(engine: Engine) -> None:
    output = await engine.stream("The quick brown fox", GREEDY, deadline_s=600.0).wait_finished()
    assert output.finish_reason == "length"


async def test_cache_salts_share_nothing(engine: Engine) -> None:
    prompt = [7] * 40
    params = SamplingParams(max_tokens=1, temperature=0.0)
    cached = []
    for salt in ("", "", "other", "other", ""):
        output = await engine.stream(prompt, params, cache_salt=salt).wait_finished()
        cached.append(output.num_cached_tokens)
    assert cached == [0, 32, 0, 32, 32]


async def test_chat_takes_the_same_options(engine: Engine) -> None:
    with pytest.raises(DeadlineExceededError):
        await engine.chat([{"role": "user", "content": "Hello"}], GREEDY, deadline_s=0.0, tenant="a", priority=3)


@pytest.mark.parametrize(
    "option",
    [
        {"priority": 1.5}, {"priority": 2**40}, {"priority": True}, {"deadline_s": -1.0}, {"deadline_s": float("nan")},
        {"deadline_s": "soon"}, {"tenant": 7}, {"tenant": "x" * 257}, {"cache_salt": None}, {"salt": "x"},
    ],
)  # fmt: skip
async def test_bad_options_are_named(engine: Engine, option: dict[str, Any]) -> None:
    ((name, _),) = option.items()
    with pytest.raises(InvalidRequestError, match=name) as raised:
        await engine.stream("x", GREEDY, **option).wait_finished()
    assert raised.value.param == name


async def test_a_callback_sees_every_request_and_may_change_it(engine: Engine) -> None:
    seen: list[tuple[str, Any]] = []

    def callback(params: SamplingParams, facts: dict[str, Any]) -> SamplingParams | None:
        seen.append((facts["request_id"], facts["prompt"]))
        assert facts["engine"] is engine
        return SamplingParams(max_tokens=3, ignore_eos=True) if facts["prompt"] == "short" else None

    engine.set_sampling_params_callback(callback)
    try:
        short = await engine.stream("short", GREEDY, request_id="a").wait_finished()
        other = await engine.stream("other", GREEDY, request_id="b").wait_finished()
    finally:
        engine.set_sampling_params_callback(None)
    assert seen == [("a", "short"), ("b", "other")]
    assert (short.num_generated_tokens, other.num_generated_tokens) == (3, 60)
