"""API keys: who may call what, what is counted, what is limited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import anyio
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from asurge import Engine
from asurge.cli.main import main
from asurge.errors import ConfigError
from asurge.scheduler import Request
from asurge.server import ApiServer, KeyRing, ServerConfig, make_app
from asurge.server import keys as keys_module
from asurge.server.errors import ApiError, RateLimitError
from asurge.server.openai.response_store import ResponseStore
from tests.server.conftest import Running

KEY, OTHER = "sk-first-key", "sk-other-key"
ASK: list[Any] = [{"role": "user", "content": "Hi"}]
PROBES = ("/openapi.json", "/health", "/liveness", "/readiness", "/ping", "/version")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def status(http: aiohttp.ClientSession, path: str, **given: Any) -> int:
    async with http.get(path, **given) as response:
        return response.status


async def test_every_route_but_the_open_ones_needs_a_key(demo: Engine, running: Running) -> None:
    server = ApiServer(demo, require_api_key=True, api_keys={KEY: {"label": "first"}}, admin_key="sk-admin-key")
    url = await running.start(server.app)
    open_, guarded = 0, 0
    async with aiohttp.ClientSession(url) as http:
        for route in server.app.router.routes():
            path = route.resource.canonical.replace("{model}", "demo").replace("{name}", "x")
            async with http.request(route.method, path, data=b"{}") as response:
                needed = response.status == 401
            async with http.request(route.method, f"{url}/{path}", data=b"{}") as response:
                assert response.status in (401, 404), path
            is_open = path in (*PROBES, "/", "/dashboard") or path.startswith("/assets/")
            assert needed != is_open, (route.method, path)
            open_, guarded = open_ + is_open, guarded + (not is_open)
        assert await status(http, "/nope") == 401
    assert open_ >= 7
    assert guarded >= 10


@pytest.mark.parametrize(
    ("headers", "query", "code"),
    [
        ({"Authorization": f"Bearer {KEY}"}, "", 200),
        ({"Authorization": f"bearer  {KEY}"}, "", 200),
        ({"X-API-Key": KEY}, "", 200),
        ({}, f"?api_key={KEY}", 200),
        ({"Authorization": f"Basic {KEY}"}, "", 401),
        ({"Authorization": "Bearer"}, "", 401),
        ({"Authorization": f"Bearer {KEY}x"}, "", 401),
        ({"Authorization": "Bearer \u00e9\u00e9"}, "", 401),
        ({"X-API-Key": OTHER}, "", 401),
        ({"X-API-Key": ""}, "", 401),
        ({"Host": "localhost/v1/models", "X-Forwarded-Host": "x"}, "", 401),
    ],
)
async def test_ways_to_send_a_key(
    demo: Engine, running: Running, headers: dict[str, str], query: str, code: int
) -> None:
    url = await running.start(ApiServer(demo, require_api_key=True, api_keys=[KEY]).app)
    async with aiohttp.ClientSession(url) as http, http.get(f"/v1/models{query}", headers=headers) as response:
        assert response.status == code
        assert ("WWW-Authenticate" in response.headers) == (code == 401)


async def test_keys_in_queries_can_be_refused(demo: Engine, running: Running) -> None:
    url = await running.start(ApiServer(demo, require_api_key=True, api_keys=[KEY], allow_query_key=False).app)
    async with aiohttp.ClientSession(url) as http:
        assert await status(http, f"/v1/models?api_key={KEY}") == 401


async def test_usage_is_counted_even_where_keys_are_optional(demo: Engine, running: Running) -> None:
    server = ApiServer(demo)
    key = server.generate_api_key(label="mine")
    url = await running.start(server.app)
    for given in (key, "sk-unknown-key"):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=given) as client:
            answer = await client.chat.completions.create(model="demo", messages=ASK, max_tokens=4)
            async for _ in await client.chat.completions.create(model="demo", messages=ASK, max_tokens=4, stream=True):
                pass
    usage = server.keys.usage()
    mine = next(one for one in usage.values() if one["label"] == "mine")
    for one in (mine, usage["anonymous"]):
        assert (one["requests"], one["prompt_tokens"]) == (2, 2 * answer.usage.prompt_tokens)
        assert 2 <= one["completion_tokens"] <= 8


async def test_a_key_sees_its_own_usage_and_the_total(demo: Engine, running: Running) -> None:
    """Whoever has the admin key sees that of all."""
    keys = {KEY: {"label": "first"}, OTHER: {"label": 'the "other"'}}
    server = ApiServer(demo, require_api_key=True, api_keys=keys, admin_key="sk-admin-key")
    url = await running.start(server.app)
    names = {one.label: one.name for one in server.keys}
    for at, key in enumerate(server.keys):
        key.admit()
        key.charge(10 + at, 20 + at)
    for path, sent, seen in (("/metrics", KEY, ["first"]), ("/metrics", OTHER, ['the "other"']), ("/admin/metrics", "sk-admin-key", list(names))):  # fmt: skip
        async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {sent}"}) as http:
            async with http.get(path) as response:
                text = await response.text()
            async with http.get(path, params={"format": "json"}) as response:
                told = await response.json()
        families = {one.name: one for one in text_string_to_metric_families(text)}
        found = {one.labels["key"]: one.labels["label"] for one in families["asurge_api_key_requests"].samples}
        assert {found[names[label]] for label in seen} == set(seen)
        assert found.keys() == told["api_key_usage"].keys()
        assert found.keys() - {"anonymous"} == {names[label] for label in seen}
        assert [one.value for one in families["asurge_api_prompt_tokens"].samples] == [21.0]
        assert told["api_usage"] == {"requests": 2, "prompt_tokens": 21, "completion_tokens": 41, "refused": 0}
        assert "asurge_client_disconnects" in families
        assert KEY not in text + str(told)
    server.keys.revoke(names["first"])
    assert server.keys.total.requests == 2


async def test_limits_answer_429(demo: Engine, running: Running) -> None:
    url = await running.start(ApiServer(demo, require_api_key=True, api_keys={KEY: {"requests_per_minute": 2}}).app)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        for _ in range(2):
            await client.chat.completions.create(model="demo", messages=ASK, max_tokens=1)
        await client.models.list()
        with pytest.raises(openai.RateLimitError) as raised:
            await client.chat.completions.create(model="demo", messages=ASK, max_tokens=1)
    assert 1 <= int(raised.value.response.headers["Retry-After"]) <= 60
    assert raised.value.code == "rate_limit_exceeded"


COUNTED: dict[str, dict[str, Any]] = {
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1]},
    "/v1/count_tokens": {"text": "a"},
    "/v1/messages/count_tokens": {"messages": ASK},
}


async def test_counting_counts_as_a_request_and_costs_no_tokens(demo: Engine, running: Running) -> None:
    server = ApiServer(demo, require_api_key=True, api_keys={KEY: {"requests_per_minute": 4, "tokens_per_minute": 10}})
    url = await running.start(server.app)
    [key] = server.keys
    key.charge(1000, 0)  # in debt, which does not matter here
    async with aiohttp.ClientSession(url, headers={"X-API-Key": KEY}) as http:
        for path, body in COUNTED.items():
            async with http.post(path, json=body) as response:
                assert response.status == 200, path
        for path, body in COUNTED.items():
            async with http.post(path, json=body) as response:
                assert (response.status, "requests" in await response.text()) == (429, True), path
    assert (key.usage.requests, key.usage.prompt_tokens, key.usage.refused) == (4, 1000, 4)


def test_tokens_are_charged_afterwards() -> None:
    clock = Clock()
    key = KeyRing(tokens_per_minute=600, clock=clock).add(KEY)
    key.admit()
    key.charge(1000, 100)  # 500 in debt
    with pytest.raises(RateLimitError) as raised:
        key.admit()
    assert raised.value.retry_after_s == pytest.approx(50.1)
    clock.now += 51
    key.admit()
    assert (key.usage.requests, key.usage.refused, key.usage.prompt_tokens) == (2, 1, 1000)


def test_keys_are_not_kept() -> None:
    ring = KeyRing()
    key = ring.generate("a")
    known = ring.find(key)
    assert known is not None
    assert key not in repr(known)
    assert key.encode() not in known.digest
    assert ring.find(key[:-1]) is None
    assert ring.revoke(known.name)
    assert ring.find(key) is None
    assert not ring.revoke(known.name)


@pytest.mark.parametrize("key", ["short", "with a space", "umläut-key-1", ""])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(ConfigError, match="API key"):
        KeyRing().add(key)
    with pytest.raises(ConfigError, match="unknown settings"):
        KeyRing().add(KEY, {"lable": "x"})


async def test_the_admin_key(demo: Engine, running: Running) -> None:
    server = ApiServer(demo, require_api_key=True, api_keys=[KEY], admin_key="sk-admin-key")
    url = await running.start(server.app)
    admin = {"Authorization": "Bearer sk-admin-key"}
    async with aiohttp.ClientSession(url) as http:
        assert await status(http, "/admin/keys", headers={"Authorization": f"Bearer {KEY}"}) == 401
        async with http.post("/admin/keys", json={"label": "new"}, headers=admin) as response:
            made = (await response.json())["key"]
        assert await status(http, "/v1/models", headers={"X-API-Key": made}) == 200
        for verb, code in (("pause", 503), ("resume", 200)):
            async with http.post(f"/admin/{verb}", headers=admin) as response:
                assert response.status == 200
            ask = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers={"X-API-Key": KEY})
            async with ask as response:
                assert response.status == code
            assert await status(http, "/readiness") == code
        async with http.get("/admin/keys", headers=admin) as response:
            name = next(name for name, one in (await response.json()).items() if one["label"] == "new")
        async with http.delete(f"/admin/keys/{name}", headers=admin) as response:
            assert response.status == 200
        assert await status(http, "/v1/models", headers={"X-API-Key": made}) == 401


async def test_traces(demo: Engine, running: Running, tmp_path: Path) -> None:
    admin = {"Authorization": "Bearer sk-admin-key"}
    without = await running.start(make_app(demo, admin_key="sk-admin-key"))
    url = await running.start(make_app(demo, admin_key="sk-admin-key", profile_dir=tmp_path))
    async with aiohttp.ClientSession() as http, anyio.create_task_group() as tasks:
        async with http.post(f"{without}/admin/profile", json={}, headers=admin) as response:
            assert response.status == 400

        async def ask() -> None:
            async with http.post(
                f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 900, "ignore_eos": True}
            ) as response:
                assert response.status == 200

        tasks.start_soon(ask)
        async with http.post(f"{url}/admin/profile", json={"num_batches": 2}, headers=admin) as response:
            told = await response.json()
        assert told["steps"] == 2
    assert _traces(tmp_path)


def _traces(folder: Path) -> list[Path]:
    return list(folder.rglob("*.xplane.pb"))


async def test_prefixes_are_shared_only_within_a_key(demo: Engine, running: Running) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 20
    for shared, hits in ((False, [False, True, False]), (True, [True, True, True])):
        server = ApiServer(demo, api_keys=[KEY, OTHER], share_prefix_cache=shared)
        url = await running.start(server.app)
        found = []
        for key in (KEY, KEY, OTHER):
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key) as client:
                prompt = text if shared else "Another. " + text
                if shared and not found:
                    await client.completions.create(model="demo", prompt=prompt, max_tokens=1)
                answer = await client.completions.create(model="demo", prompt=prompt, max_tokens=1)
                found.append(answer.usage.prompt_tokens_details.cached_tokens > 0)
        assert found == hits


async def test_nobody_spells_anothers_salt(demo: Engine, running: Running) -> None:
    """Names of keys are in the figures: with one as a salt, a request without a key must not see that key's prefixes."""
    server = ApiServer(demo, api_keys=[KEY])
    url, text = await running.start(server.app), "A text that only the first key has sent so far. " * 20
    [name] = [one.name for one in server.keys]
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as owner:
        await owner.completions.create(model="demo", prompt=text, max_tokens=1)
        again = await owner.completions.create(model="demo", prompt=text, max_tokens=1)
    assert again.usage is not None
    assert again.usage.prompt_tokens_details.cached_tokens  # type: ignore[union-attr]
    async with aiohttp.ClientSession(url) as http:
        for salt in (f"{name}:", name, "", *(f"{one.owner}:" for one in server.keys)):
            async with http.post(
                "/v1/completions", json={"prompt": text, "max_tokens": 1, "cache_salt": salt}
            ) as answer:
                told = await answer.json()
            assert told["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that begin alike: with 32 bits, a pair is found in seconds."""
    digest = keys_module._digest
    monkeypatch.setattr(keys_module, "_digest", lambda key: bytes(5) + digest(key)[5:])


@pytest.mark.usefixtures("alike")
def test_keys_whose_hashes_begin_alike_are_told_apart() -> None:
    ring = KeyRing()
    first, second, third = (ring.add(key, {"label": key}) for key in (KEY, OTHER, "third-key-of-three"))
    assert len({first.name, second.name, third.name}) == len({first.owner, second.owner, third.owner}) == 3
    assert first.name == "key-00000000"
    assert {one["label"] for one in ring.usage().values()} == {"", KEY, OTHER, "third-key-of-three"}
    store = ResponseStore(10)
    store.put("resp_1", b"secret", [], first)
    assert store.get("resp_1", first).body == b"secret"
    for other in (second, third, ring.anonymous):
        assert store.size(other) == 0
        with pytest.raises(ApiError, match="no such response"):
            store.get("resp_1", other)
    assert ring.revoke(first.name)
    assert [ring.find(key) for key in (KEY, OTHER)] == [None, second]
    assert ring.add(OTHER).name == second.name, "a key keeps its name"
    again = ring.add("fourth-key-of-four")
    assert again.name == first.name, "names of keys that are gone are free"
    with pytest.raises(ApiError, match="no such response"):
        store.get("resp_1", again)


@pytest.mark.usefixtures("alike")
async def test_keys_whose_hashes_begin_alike_share_nothing(demo: Engine, running: Running) -> None:
    server = ApiServer(demo, api_keys=[KEY, OTHER])
    url, text = await running.start(server.app), "Something that the first of two keys sends. " * 20
    tenants = set[str]()
    add = demo._life.parts.scheduler.add  # type: ignore[union-attr]

    def seen(request: Request) -> None:
        tenants.add(request.tenant)
        add(request)

    cached = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo._life.parts.scheduler, "add", seen)  # type: ignore[union-attr]
        async with aiohttp.ClientSession(url) as http:
            for key in (KEY, KEY, OTHER):
                body = {"prompt": text, "max_tokens": 1}
                async with http.post("/v1/completions", json=body, headers={"X-API-Key": key}) as answer:
                    cached.append((await answer.json())["usage"]["prompt_tokens_details"]["cached_tokens"] > 0)
    assert cached == [False, True, False]
    assert tenants == {one.owner for one in server.keys}


async def test_who_leaves_is_charged_and_counted(demo: Engine, running: Running) -> None:
    server = ApiServer(demo, require_api_key=True, api_keys=[KEY])
    url = await running.start(server.app)
    [key] = server.keys
    long = {"prompt": "a", "max_tokens": 900, "ignore_eos": True, "stream": True}
    async with aiohttp.ClientSession(url, headers={"X-API-Key": KEY}) as http:
        for stream in (True, False):
            before = key.usage.completion_tokens

            async def ask(stream: bool = stream) -> None:
                async with http.post("/v1/completions", json={**long, "stream": stream}) as response:
                    await response.read()

            generated = demo.get_metrics_summary()["total_tokens"]
            with anyio.fail_after(5):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ask)
                    while demo.get_metrics_summary()["total_tokens"] == generated:
                        await anyio.sleep(0.001)
                    tasks.cancel_scope.cancel()
                while server.state.active:
                    await anyio.sleep(0.01)
            assert before < key.usage.completion_tokens < before + 900
    assert (server.state.disconnects, key.usage.requests) == (2, 2)


async def test_other_origins(demo: Engine, running: Running) -> None:
    asks = {
        "Origin": "http://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    for origins, allowed in (((), None), (("http://a.example",), "http://a.example"), (("*",), "*"), (("http://b.example",), None)):  # fmt: skip
        url = await running.start(make_app(demo, cors_origins=origins, require_api_key=True))
        async with aiohttp.ClientSession(url) as http, http.options("/v1/chat/completions", headers=asks) as response:
            assert response.status == 204
            assert response.headers.get("Access-Control-Allow-Origin") == allowed
            wanted = None if allowed is None else asks["Access-Control-Request-Headers"]
            assert response.headers.get("Access-Control-Allow-Headers") == wanted


@pytest.mark.parametrize("wrong", ["", "short", "with a space"])
def test_an_admin_key_is_a_key(wrong: str) -> None:
    """An empty one, as of a variable that is not set, would open ``/admin`` to whoever sends none."""
    with pytest.raises(ConfigError, match="API key"):
        ServerConfig(admin_key=wrong)


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_limits_are_positive(limit: float) -> None:
    with pytest.raises(ConfigError, match="requests_per_minute"):
        KeyRing().add(KEY, {"requests_per_minute": limit})


def test_settings_beside_a_config_are_not_passed_over() -> None:
    with pytest.raises(ConfigError, match="require_api_key"):
        make_app(Engine("demo"), ServerConfig(), require_api_key=True)


def test_a_file_without_keys_opens_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_text("# none yet\n\n")
    assert main(["serve", "--api-key-file", str(tmp_path / "keys"), "--port", "0"]) == 2
    assert "holds no key" in capsys.readouterr().err


def test_a_file_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_bytes(b"sk-abcdefgh m\xfcller\n")
    assert main(["serve", "--api-key-file", str(tmp_path / "keys"), "--port", "0"]) == 2
    assert "not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", ",", " , "])
def test_an_environment_without_keys_opens_nothing(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASURGE_API_KEYS", value)
    assert main(["serve", "/nowhere", "--port", "0"]) == 2
    assert "ASURGE_API_KEYS holds no key" in capsys.readouterr().err
