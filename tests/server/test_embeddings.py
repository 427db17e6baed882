"""``/v1/embeddings`` through OpenAI's own client."""

from __future__ import annotations

import base64
import json
from functools import partial
from typing import Any

import aiohttp
import anyio
import numpy as np
import openai
import pytest

from asurge import Engine
from asurge.server import KeyRing, make_app
from asurge.server.state import STATE
from tests.idle import settle
from tests.server.conftest import Running

PATH, TEXTS = "/v1/embeddings", ["def area(width, height):", "The", "import os\n" * 40]


async def create(client: openai.AsyncOpenAI, **given: Any) -> Any:
    return await client.embeddings.create(**{"model": "demo", "input": TEXTS, **given})


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
async def test_vectors_are_the_engines(client: openai.AsyncOpenAI, demo: Engine, form: dict[str, Any]) -> None:
    """Without a format, OpenAI's client asks for base64 and decodes it itself."""
    wanted = await demo.embed(TEXTS, use_tqdm=False)
    answer = await create(client, **form)
    assert (answer.object, answer.model) == ("list", "demo")
    assert [(one.index, one.object) for one in answer.data] == [(at, "embedding") for at in range(3)]
    for one, output in zip(answer.data, wanted, strict=True):
        vector = one.embedding
        if isinstance(vector, str):
            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        # Neighbours differ, and in bfloat16 so do last digits.
        np.testing.assert_allclose(vector, output.embedding, atol=2e-3)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(one.prompt_token_ids) for one in wanted)


async def test_one_text_token_ids_and_lists_of_them(client: openai.AsyncOpenAI, demo: Engine) -> None:
    ids = [one.prompt_token_ids for one in await demo.embed(TEXTS, use_tqdm=False)]
    (text,) = (await create(client, input=TEXTS[0], model="gpt-4o-mini")).data
    (tokens,) = (await create(client, input=ids[0])).data
    assert tokens.embedding == text.embedding
    assert len((await create(client, input=ids)).data) == 3


async def test_dimensions_pooling_and_length(client: openai.AsyncOpenAI, demo: Engine) -> None:
    for given in ({}, {"pooling": "last"}, {"pooling": "last", "normalize": False}):
        (wanted,) = await demo.embed(TEXTS[0], dimensions=10, use_tqdm=False, **given)
        (one,) = (await create(client, input=TEXTS[0], dimensions=10, user="me", extra_body=given)).data
        np.testing.assert_array_equal(np.asarray(one.embedding, np.float32), wanted.embedding)


async def test_numbers_are_written_as_float32(http: aiohttp.ClientSession, demo: Engine) -> None:
    (wanted,) = await demo.embed("The", use_tqdm=False)
    async with http.post(PATH, json={"input": "The"}) as response:
        text = await response.text()
    assert max(len(number) for number in text.split("[")[2].split("]")[0].split(",")) < 16
    vector = json.loads(text)["data"][0]["embedding"]
    assert np.asarray(vector, np.float32).tobytes() == wanted.embedding.tobytes()


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({}, None), ({"input": 1}, "input"), ({"input": []}, "input"), ({"input": ""}, "input"), ({"input": ["a", ""]}, "input"),
        ({"input": [1, "a"]}, "input"), ({"input": [10**7]}, "input"), ({"input": [[]]}, "input"), ({"input": ["a"] * 257}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"), ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 10**6}, "dimensions"), ({"input": "a", "dimensions": 1.5}, "dimensions"),
        ({"input": "a", "pooling": "max"}, "pooling"), ({"input": "a", "normalize": 1}, "normalize"), ({"input": "a", "deadline_s": -1}, "deadline_s"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ],
)  # fmt: skip
async def test_refused(http: aiohttp.ClientSession, given: dict[str, Any], param: str | None) -> None:
    async with http.post(PATH, json=given) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert 0 < len(error["message"]) < 700


async def test_clients_raise_their_own_errors(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        await create(client, model="text-embedding-3-small")
    with pytest.raises(openai.BadRequestError) as raised:
        await create(client, input="")
    assert raised.value.param == "input"
    with pytest.raises(openai.InternalServerError) as late:
        await create(client, extra_body={"deadline_s": 0.0})
    assert (late.value.status_code, late.value.code) == (504, "deadline_exceeded")


async def test_a_key_is_charged_for_tokens(demo: Engine, running: Running) -> None:
    ring = KeyRing()
    key = ring.add("sk-mine-key")
    url = await running.start(make_app(demo, keys=ring, require_api_key=True))
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-mine-key", max_retries=0) as client:
        answer = await create(client)
        assert (key.usage.requests, key.usage.prompt_tokens, key.usage.completion_tokens) == (1, answer.usage.prompt_tokens, 0)  # fmt: skip
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-none", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await create(client)


async def test_a_client_that_leaves_ends_its_embeddings(demo: Engine, running: Running) -> None:
    """And is charged for those that were done."""
    app = make_app(demo)
    url, usage = await running.start(app), app[STATE].keys.anonymous.usage
    long = [[at + 1] * (demo.max_model_len - at) for at in range(200)]
    before = demo.get_metrics_summary()["total_completed"]
    async with aiohttp.ClientSession(url) as http, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(http.post, PATH, json={"input": long}))
        with anyio.fail_after(20):
            while demo.get_metrics_summary()["total_completed"] == before:
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    await settle(demo, left_by_clients=True)
    with anyio.fail_after(5):
        while app[STATE].active:
            await anyio.sleep(0.001)
    assert 0 < usage.prompt_tokens < sum(map(len, long))


async def test_a_server_that_stops_says_so(demo: Engine, running: Running) -> None:
    app = make_app(demo)
    url = await running.start(app)
    long = [[5] * (demo.max_model_len - at) for at in range(200)]
    async with aiohttp.ClientSession(url) as http, anyio.create_task_group() as tasks:

        async def ask() -> None:
            async with http.post(PATH, json={"input": long}) as response:
                assert response.status == 503
                assert response.headers["Retry-After"]
                assert (await response.json())["error"]["code"] == "unavailable"

        tasks.start_soon(ask)
        while demo.num_running_requests == 0:
            await anyio.sleep(0.01)
        assert demo._life.pipeline is not None
        demo._life.pipeline.abort_all()
    await settle(demo, left_by_clients=True)
