"""What the server tells of its engines."""

from __future__ import annotations

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from asurge import Engine
from asurge.errors import EngineOverloadedError
from asurge.observe import lag
from asurge.scheduler import Request, Scheduler
from asurge.server import make_app
from asurge.server.state import STATE
from tests.server.clients import TEXT
from tests.server.conftest import Running


async def scraped(url: str) -> dict[str, float]:
    """Samples without labels' values, summed up."""
    async with aiohttp.ClientSession(url) as http, http.get("/metrics") as response:
        text = await response.text()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


async def test_applications_over_one_engine_have_figures_of_their_own(demo: Engine, running: Running) -> None:
    other = Running()
    apps = [make_app(demo), make_app(demo)]
    urls = [await running.start(apps[0]), await other.start(apps[1])]
    for app in apps:
        await app[STATE].settled.wait()
    for at, url in enumerate(urls):
        async with aiohttp.ClientSession(url) as http, http.post(TEXT, json={"prompt": "a", "max_tokens": 3, "ignore_eos": True}) as answer:  # fmt: skip
            assert answer.status == 200
        for one in urls:
            told = await scraped(one)
            assert told["asurge_request_success_total"] == told["asurge_time_to_first_token_seconds_count"] == at + 1
            assert told["asurge_inter_token_latency_seconds_count"] == 2 * (at + 1)
    assert demo._life.pipeline is not None
    before = len(demo._life.pipeline.request_observers)
    await other.stop()
    assert len(demo._life.pipeline.request_observers) == before - 1


async def test_where_the_time_and_the_tokens_of_requests_went(
    demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(scheduler: Scheduler, request: Request) -> None:
        raise EngineOverloadedError("the queue is full", retry_after_s=1.0)

    monkeypatch.setattr(lag, "INTERVAL_S", 0.0)  # these requests end sooner than the loop is usually looked at
    url = await running.start(make_app(demo))
    async with aiohttp.ClientSession(url) as http:
        for n in (1, 2):
            body = {"prompt": "one two three", "max_tokens": 5, "n": n, "ignore_eos": True}
            async with http.post(TEXT, json=body) as answer:
                assert answer.status == 200
        monkeypatch.setattr(Scheduler, "add", full)
        async with http.post(TEXT, json=body) as answer:
            assert answer.status == 503
    told = await scraped(url)
    for name in ("queue_time_seconds", "prefill_time_seconds", "decode_time_seconds", "inference_time_seconds"):
        assert told[f"vllm:request_{name}_count"] == 2
    parts = (told[f"asurge_request_{part}_time_seconds_sum"] for part in ("queue", "prefill", "decode"))
    assert sum(parts) == pytest.approx(told["asurge_e2e_request_latency_seconds_sum"])
    assert told["asurge_request_params_max_tokens_sum"] == told["asurge_request_max_num_generation_tokens_sum"] == 10
    # Each token but the first is computed when the next one is sampled.
    assert told["asurge_iteration_tokens_total_sum"] == told["asurge_request_prompt_tokens_sum"] * 1.5 + 3 * 4
    assert told["asurge_admission_rejections_total"] == 1
    assert told["vllm:cache_config_info"] == 1
    assert told["asurge_event_loop_lag_seconds"] >= 0


async def test_the_figures_have_no_times_of_birth(demo: Engine, running: Running) -> None:
    """Which nobody reads; the host's own metrics keep theirs."""
    url = await running.start(make_app(demo))
    async with aiohttp.ClientSession(url) as http, http.post(TEXT, json={"prompt": "a", "max_tokens": 2}) as answer:
        assert answer.status == 200
    told = await scraped(url)
    assert {"asurge_request_success_total", "vllm:request_success_total", "vllm:e2e_request_latency_seconds_sum"} <= told.keys()  # fmt: skip
    assert not [name for name in told if name.endswith("_created")]
