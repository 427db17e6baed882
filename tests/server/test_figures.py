"""What the server tells of its engines."""

from __future__ import annotations

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from asurge import Engine
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
    assert demo._pipeline is not None
    before = len(demo._pipeline.request_observers)
    await other.stop()
    assert len(demo._pipeline.request_observers) == before - 1


async def test_the_figures_have_no_times_of_birth(demo: Engine, running: Running) -> None:
    """Which nobody reads; the host's own metrics keep theirs."""
    url = await running.start(make_app(demo))
    async with aiohttp.ClientSession(url) as http, http.post(TEXT, json={"prompt": "a", "max_tokens": 2}) as answer:
        assert answer.status == 200
    told = await scraped(url)
    assert {"asurge_request_success_total", "vllm:request_success_total", "vllm:e2e_request_latency_seconds_sum"} <= told.keys()  # fmt: skip
    assert not [name for name in told if name.endswith("_created")]
