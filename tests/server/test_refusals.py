"""What is refused, in OpenAI's shape, with the field's name; and what never leaves the server."""

from __future__ import annotations

import asyncio
import gc
import gzip
import io
import json
import time
import zlib
from typing import Any, Self

import aiohttp
import openai
import pytest
from aiohttp import web

from asurge import Engine
from asurge.server import make_app
from asurge.server.http.connection import ConnectionRunner
from asurge.text import Tokenizer
from tests.server.clients import CHAT, TEXT
from tests.server.conftest import Running

ASK: list[Any] = [{"role": "user", "content": "Hi"}]

REFUSED: dict[str, tuple[str, Any, int, str | None]] = {
    "no messages": (CHAT, {}, 400, None),
    "messages of a wrong kind": (CHAT, {"messages": "Hi"}, 400, "messages"),
    "no message at all": (CHAT, {"messages": []}, 400, "messages"),
    "an unknown role": (CHAT, {"messages": [{"role": "king", "content": ""}]}, 400, "messages[0].role"),
    "no content": (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
    "an image": (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://localhost/x"}}]}]}, 400, "messages[0].content[0]"),
    "an unknown model": (CHAT, {"messages": ASK, "model": "gpt-9"}, 404, "model"),
    "a negative temperature": (CHAT, {"messages": ASK, "temperature": -0.1}, 400, "temperature"),
    "a huge temperature": (CHAT, {"messages": ASK, "temperature": 1e300}, 400, "temperature"),
    "top_p of 0": (CHAT, {"messages": ASK, "top_p": 0}, 400, "top_p"),
    "too many choices": (CHAT, {"messages": ASK, "n": 10**9}, 400, "n"),
    "no choices": (CHAT, {"messages": ASK, "n": 0}, 400, "n"),
    "no tokens at all": (CHAT, {"messages": ASK, "max_completion_tokens": 0}, 400, "max_tokens"),
    "no tokens": (CHAT, {"messages": ASK, "max_tokens": -1}, 400, "max_tokens"),
    "a number beyond 64 bits": (CHAT, {"messages": ASK, "seed": 10**30}, 400, "seed"),
    "a seed beyond 64 bits": (CHAT, {"messages": ASK, "seed": -(2**63) - 1}, 400, "seed"),
    "more tokens than are made text at once": ("/detokenize", {"tokens": [5] * (2**20 + 1)}, 400, "tokens"),
    "much metadata": ("/v1/responses", {"input": "a", "metadata": {str(at): "" for at in range(17)}}, 400, "metadata"),
    "long metadata": ("/v1/responses", {"input": "a", "metadata": {"a": "b" * 513}}, 400, "metadata"),
    "a bias of no token": (CHAT, {"messages": ASK, "logit_bias": {"abc": 1}}, 400, "logit_bias"),
    "a bias beyond the vocabulary": (CHAT, {"messages": ASK, "logit_bias": {"99999999": 1}}, 400, "logit_bias"),
    "top_logprobs alone": (CHAT, {"messages": ASK, "top_logprobs": 2}, 400, "top_logprobs"),
    "too many top_logprobs": (CHAT, {"messages": ASK, "logprobs": True, "top_logprobs": 10**6}, 400, "top_logprobs"),
    "stream options without a stream": (CHAT, {"messages": ASK, "stream_options": {}}, 400, "stream_options"),
    "a template": (CHAT, {"messages": ASK, "chat_template": "{{ 1 }}"}, 400, "chat_template"),
    "nothing to go on with": (CHAT, {"messages": ASK, "continue_final_message": True}, 400, "continue_final_message"),
    "an answer and the rest of one": (CHAT, {"messages": [*ASK, {"role": "assistant", "content": "Well,"}], "continue_final_message": True, "add_generation_prompt": True}, 400, "continue_final_message"),
    "a prompt's logprobs in a stream": (CHAT, {"messages": ASK, "prompt_logprobs": 1, "stream": True}, 400, "prompt_logprobs"),
    "template arguments": (CHAT, {"messages": ASK, "chat_template_kwargs": {"tools": 1}}, 400, "chat_template_kwargs"),
    "a tool that is not there": (CHAT, {"messages": ASK, "tools": [{"function": {"name": "a"}}], "tool_choice": {"function": {"name": "b"}}}, 400, "tool_choice"),
    "a tool of another kind that is chosen": (CHAT, {"messages": ASK, "tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, 400, "tool_choice"),
    "no function to choose": (CHAT, {"messages": ASK, "tools": [{"type": "web_search"}], "tool_choice": "required"}, 400, "tool_choice"),
    "an allowed tool that is not there": (CHAT, {"messages": ASK, "tools": [{"function": {"name": "a"}}], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "b"}}]}}}, 400, "tool_choice"),
    "a call of nothing": (CHAT, {"messages": [*ASK, {"role": "assistant", "tool_calls": [{"id": "c"}]}]}, 400, "messages[1].tool_calls[0].function"),
    "properties in a list": (CHAT, {"messages": ASK, "tools": [{"function": {"name": "a"}}, {"function": {"name": "b", "parameters": {"properties": ["c"]}}}]}, 400, "tools[1].function.parameters"),
    "a number of required parameters": (CHAT, {"messages": ASK, "tools": [{"function": {"name": "a", "parameters": {"required": 5}}}]}, 400, "tools[0].function.parameters"),
    "required parameters without names": (CHAT, {"messages": ASK, "tools": [{"function": {"name": "a", "parameters": {"required": [5]}}}]}, 400, "tools[0].function.parameters"),
    "definitions in a list": (CHAT, {"messages": ASK, "tools": [{"function": {"name": "a", "parameters": {"$ref": "#/$defs/x", "$defs": ["x"]}}}]}, 400, "tools[0].function.parameters"),
    "tool_choice alone": (CHAT, {"messages": ASK, "tool_choice": "required"}, 400, "tool_choice"),
    "a bad schema": (CHAT, {"messages": ASK, "guided_json": {"type": "wrong"}}, 400, "guided_decoding.json"),
    "a regex blow-up": (CHAT, {"messages": ASK, "guided_regex": "(a{1000}){1000}"}, 400, "guided_decoding.regex"),
    "an unknown form": (CHAT, {"messages": ASK, "structured_outputs": {"xml": 1}}, 400, "structured_outputs"),
    "a form with a long name": (CHAT, {"messages": ASK, "structured_outputs": {"x" * 10_000: 1}}, 400, "structured_outputs"),
    "a processor with a long name": (CHAT, {"messages": ASK, "logits_processors": {"x" * 10_000: 1}}, 400, "logits_processors"),
    "too many token ids": (TEXT, {"prompt": "a", "stop_token_ids": [1] * (1 << 20) + [1]}, 400, "stop_token_ids"),
    "two forms": (CHAT, {"messages": ASK, "guided_regex": "a", "guided_choice": ["a"]}, 400, "guided_decoding"),
    "no prompt": (TEXT, {}, 400, None),
    "an empty list of prompts": (TEXT, {"prompt": []}, 400, "prompt"),
    "an empty prompt": (TEXT, {"prompt": ""}, 400, "prompt"),
    "an empty prompt of tokens": (TEXT, {"prompt": [[]]}, 400, "prompt"),
    "an empty prompt among others": (TEXT, {"prompt": ["a", ""]}, 400, "prompt"),
    "a stop string without end": (TEXT, {"prompt": "a", "stop": "x" * 100_000}, 400, "stop"),
    "too many prompt_logprobs": (TEXT, {"prompt": "a", "prompt_logprobs": 10**6}, 400, "prompt_logprobs"),
    "logprobs of too many places": (TEXT, {"prompt": ["a" * 2000] * 8, "n": 64, "prompt_logprobs": 20}, 400, "logprobs"),
    "logprobs of too many answers": (CHAT, {"messages": ASK, "n": 64, "max_tokens": 100_000, "logprobs": True, "top_logprobs": 20, "prompt_logprobs": 20}, 400, "logprobs"),
    "too many logprobs": (TEXT, {"prompt": "a", "logprobs": 10**6}, 400, "logprobs"),
    "token ids outside the vocabulary": (TEXT, {"prompt": [[1, 10**7]]}, 400, "prompt"),
    "negative token ids": (TEXT, {"prompt": [-1]}, 400, "prompt"),
    "mixed prompts": (TEXT, {"prompt": [1, "a"]}, 400, "prompt"),
    "too many prompts": (TEXT, {"prompt": ["a"] * 257}, 400, "prompt"),
    "too many choices of all prompts": (TEXT, {"prompt": ["a"] * 256, "n": 3}, 400, "n"),
    "a suffix": (TEXT, {"prompt": "a", "suffix": "b"}, 400, "suffix"),
    "beam search": (TEXT, {"prompt": "a", "use_beam_search": True}, 400, "use_beam_search"),
    "beam search in chat": (CHAT, {"messages": [{"role": "user", "content": "a"}], "use_beam_search": True}, 400, "use_beam_search"),
    "the beginning of a long prompt": (TEXT, {"prompt": "a", "truncation_side": "right"}, 400, "truncation_side"),
    "a deadline in the past": (TEXT, {"prompt": "a", "deadline_s": -1}, 400, "deadline_s"),
    "a lone surrogate": (TEXT, b'{"prompt": "\\ud800"}', 400, None),
    "no JSON": (CHAT, b"{", 400, None),
    "NaN": (CHAT, b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}', 400, None),
    "not UTF-8": (CHAT, b'{"messages": "\xff\xfe"}', 400, "messages"),
    "a list": (CHAT, b"[]", 400, None),
    "depth": (CHAT, b'{"messages": [], "tools": ' + b'[{"function": {"name": "a", "parameters": {"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}}]}", 400, None),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_refused(http: aiohttp.ClientSession, case: str) -> None:
    path, body, status, param = REFUSED[case]
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with http.post(path, data=io.BytesIO(data)) as response:
        told = await response.json()
        assert response.status == status, told
        assert response.headers["X-Request-Id"]
    assert told.keys() == {"error"}
    assert told["error"].keys() == {"message", "type", "param", "code"}
    assert (told["error"]["type"], told["error"]["param"]) == ("invalid_request_error", param)
    assert 0 < len(told["error"]["message"]) < 700
    for secret in ("Traceback", "/work", "site-packages", "asurge."):
        assert secret not in told["error"]["message"]


async def test_large_numbers_are_nobody_elses_trouble(http: aiohttp.ClientSession) -> None:
    """One that does not fit the step's array must not fail the step, which others share."""
    for name in ("top_k", "max_tokens", "thinking_budget", "truncate_prompt_tokens"):
        async with http.post(TEXT, json={"prompt": "a", "max_tokens": 2, "seed": 1, name: 2**62}) as response:
            assert response.status == 200, name


async def test_clients_raise_their_own_errors(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.chat.completions.create(model="gpt-9", messages=ASK)
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="demo", messages=ASK, temperature=-1)
    assert raised.value.param == "temperature"
    # What is refused is refused before a stream begins.
    with pytest.raises(openai.BadRequestError):
        await client.completions.create(model="demo", prompt=[10**7], stream=True)


async def test_routes_and_methods(http: aiohttp.ClientSession) -> None:
    for method, path, status in (("GET", "/nope", 404), ("GET", CHAT, 405), ("POST", "/v1/models", 405), ("GET", "/admin/keys", 404), ("GET", "/v1/models/nope", 404)):  # fmt: skip
        async with http.request(method, path) as response:
            assert response.status == status
            assert (await response.json())["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/health", "/liveness", "/readiness", "/ping", "/version", "/metrics", "/v1/models", "/"]
)
async def test_heads_of_what_can_be_got(http: aiohttp.ClientSession, path: str) -> None:
    """Load balancers ask so."""
    async with http.head(path) as head, http.get(path) as whole:
        assert (head.status, await head.read()) == (200, b"")
        assert head.headers["Content-Type"] == whole.headers["Content-Type"]


HOSTS = pytest.mark.parametrize("host", [web.AppRunner, ConnectionRunner])
"""An application's own, and that of ``asurge serve``."""


@HOSTS
async def test_bodies_have_bounds(demo: Engine, running: Running, host: type[web.AppRunner]) -> None:
    url = await running.start(make_app(demo, max_body_bytes=10_000), host)
    async with aiohttp.ClientSession(url) as http:
        async with http.post(TEXT, data=b'{"prompt": "' + b"a" * 20_000 + b'"}') as response:
            assert (response.status, (await response.json())["error"]["code"]) == (413, "body_too_large")
        packed = gzip.compress(b'{"prompt": "' + b"a" * 1_000_000 + b'"}')
        async with http.post(TEXT, data=packed, headers={"Content-Encoding": "gzip"}) as response:
            assert response.status == 413
        small = b'{"prompt": "a", "max_tokens": 1}'
        headless = zlib.compressobj(wbits=-15)
        for encoding, body in (
            ("gzip", gzip.compress(small)),
            ("deflate", zlib.compress(small)),
            ("deflate", headless.compress(small) + headless.flush()),
            ("identity", small),
        ):
            async with http.post(TEXT, data=body, headers={"Content-Encoding": encoding}) as response:
                assert response.status == 200
        async with http.get("/v1/models", headers={"X-Long": "a" * 100_000}) as response:
            assert response.status == 400


async def test_a_wrong_method_is_told_the_right_ones(http: aiohttp.ClientSession) -> None:
    async with http.delete("/v1/models") as response:
        assert response.status == 405
        assert "GET" in response.headers["Allow"]


async def test_ids_of_requests_come_back(http: aiohttp.ClientSession) -> None:
    async with http.get("/v1/models", headers={"X-Request-Id": "mine-1"}) as response:
        assert response.headers["X-Request-Id"] == "mine-1"
    async with http.get("/v1/models", headers={"X-Request-Id": "a" * 1000}) as response:
        assert len(response.headers["X-Request-Id"]) < 100
    async with http.post(TEXT, json={"prompt": "a", "max_tokens": 1, "stream": True}, headers={"X-Request-Id": "mine-2"}) as response:  # fmt: skip
        assert response.headers["X-Request-Id"] == "mine-2"


@HOSTS
async def test_bodies_that_are_not_what_their_headers_say(
    demo: Engine, running: Running, host: type[web.AppRunner]
) -> None:
    url = await running.start(make_app(demo), host)
    cut = gzip.compress(b'{"prompt": "a"}')[:-12]
    for encoding, body in (("gzip", b"garbage"), ("deflate", b"garbage"), ("gzip", cut)):
        async with (
            aiohttp.ClientSession(url) as http,
            http.post(TEXT, data=body, headers={"Content-Encoding": encoding}) as response,
        ):
            # Of what is cut off, aiohttp takes what there is for all of it.
            code = "invalid_json" if (body, host) == (cut, web.AppRunner) else "invalid_body"
            assert (response.status, (await response.json())["error"]["code"]) == (400, code)


async def test_an_unknown_encoding_is_refused(demo: Engine, running: Running) -> None:
    url = await running.start(make_app(demo), ConnectionRunner)
    async with (
        aiohttp.ClientSession(url) as http,
        http.post(TEXT, data=b"...", headers={"Content-Encoding": "zstd"}) as response,
    ):
        assert (response.status, (await response.json())["error"]["code"]) == (415, "unsupported_encoding")


async def test_no_body_is_inflated_before_it_is_asked_for(running: Running) -> None:
    """aiohttp would do so on the event loop, also with what follows a refusal: a MiB of zeros takes seconds."""

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    app = web.Application()
    app.router.add_post("/", echo)
    packed = gzip.compress(b"a" * 1000)
    async with (
        aiohttp.ClientSession(await running.start(app, ConnectionRunner)) as http,
        http.post("/", data=packed, headers={"Content-Encoding": "gzip"}) as response,
    ):
        assert await response.read() == packed


@pytest.mark.parametrize(("root", "own", "code"), [(1 << 20, 4 << 20, 200), (4 << 20, 1 << 20, 413)])
async def test_a_mounted_application_keeps_its_own_bounds(
    demo: Engine, running: Running, root: int, own: int, code: int
) -> None:
    app = web.Application(client_max_size=root)
    app.add_subapp("/llm", make_app(demo, max_body_bytes=own))
    url = await running.start(app)
    body = b'{"text": "a"' + b" " * (2 << 20) + b"}"
    async with aiohttp.ClientSession(url) as http, http.post("/llm/v1/count_tokens", data=io.BytesIO(body)) as response:
        assert response.status == code


HEAVY: dict[str, tuple[str, dict[str, Any]]] = {
    "many messages": (CHAT, {"messages": ASK * 50_000, "max_tokens": 1}),
    "a large form": (CHAT, {"messages": ASK, "guided_json": {"properties": {f"p{at}": {"type": "string"} for at in range(50_000)}}}),
    "much structure": (CHAT, {"messages": ASK, "guided_json": {"a": [[]] * 1_000_000}}),
    "many token ids": (TEXT, {"prompt": [5] * 1_000_000, "max_tokens": 1}),
    "many bad words": (TEXT, {"prompt": "a", "bad_words": ["hello world " * 80] * 256, "max_tokens": 1}),
    "many allowed tokens": (TEXT, {"prompt": "a", "allowed_token_ids": [5] * 1_000_000, "max_tokens": 1}),
    "many tokens that end": (TEXT, {"prompt": "a", "stop_token_ids": [5] * 1_000_000, "max_tokens": 1}),
    "lists of many answers": (TEXT, {"prompt": "a", "n": 32, "bad_words": ["hello world " * 80] * 256, "allowed_token_ids": [*range(500)] * 40, "max_tokens": 1}),
    "a prompt's logprobs": (TEXT, {"prompt": ["The quick brown fox jumps. " * 140] * 4, "prompt_logprobs": 20, "max_tokens": 1}),
    "token strings": ("/tokenize", {"prompt": "hello world " * 50_000, "return_token_strs": True}),
    "many tokens": ("/detokenize", {"tokens": [5] * 1_000_000}),
}  # fmt: skip


class Stretch:
    """How long the loop's own thread computes at a stretch, which other load does not lengthen.

    Nor does the garbage of the tests before, which a server's frozen heap does not have.
    """

    worst_s = 0.0

    def __enter__(self) -> Self:
        self._run = asyncio.events.Handle._run
        asyncio.events.Handle._run = lambda handle: self._timed(handle)  # type: ignore[method-assign,assignment]
        self._open = True
        gc.disable()
        return self

    def __exit__(self, *_: object) -> None:
        gc.enable()
        asyncio.events.Handle._run = self._run  # type: ignore[method-assign]
        self._open = False

    def _timed(self, handle: asyncio.Handle) -> None:
        began = time.thread_time()
        self._run(handle)
        if self._open:  # else it is what ended the measurement, and goes on with other things
            self.worst_s = max(self.worst_s, time.thread_time() - began)


@pytest.mark.parametrize("case", HEAVY)
async def test_much_work_is_not_done_on_the_loop(demo: Engine, case: str) -> None:
    path, body = HEAVY[case]
    data = json.dumps(body).encode()
    running = Running()
    url = await running.start(make_app(demo))
    async with aiohttp.ClientSession(url) as http:
        with Stretch() as stretch:
            async with http.post(path, data=io.BytesIO(data)) as response:
                await response.read()
                assert response.status < 500
    await running.stop()
    assert stretch.worst_s < 0.05


async def test_a_long_conversation_that_is_kept_is_not_prepared_on_the_loop(demo: Engine, running: Running) -> None:
    url = await running.start(make_app(demo))
    async with aiohttp.ClientSession(url) as http:

        async def create(**given: Any) -> str:
            data = io.BytesIO(json.dumps({"max_output_tokens": 1, **given}).encode())
            async with http.post("/v1/responses", data=data) as response:
                answer = await response.json()
                assert response.status == 200, answer
            return str(answer["id"])

        first = await create(input=ASK * 50_000)
        with Stretch() as stretch:
            await create(input="And?", previous_response_id=first)
    assert stretch.worst_s < 0.05


FAR = "hello world " * 100_000
ASKED: dict[str, tuple[str, dict[str, Any], str]] = {
    "tokenize": ("/tokenize", {"prompt": FAR}, "prompt"),
    "tokenize a conversation": ("/tokenize", {"messages": [{"role": "user", "content": FAR}]}, "messages"),
    "count": ("/v1/count_tokens", {"text": FAR}, "prompt"),
    "count a conversation": ("/v1/messages/count_tokens", {"model": "demo", "messages": [{"role": "user", "content": FAR}]}, "messages"),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED)
async def test_texts_are_tokenised_whole_up_to_a_length(
    demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    path, body, param = ASKED[case]
    monkeypatch.setattr(Tokenizer, "encode", lambda *_, **__: pytest.fail("it was tokenised"))
    url, data = await running.start(make_app(demo)), io.BytesIO(json.dumps(body).encode())
    async with aiohttp.ClientSession(url) as http, http.post(path, data=data) as response:
        assert response.status == 400
        error = (await response.json())["error"]
    assert f"{param} has 1200" in error["message"]
    assert "at most 1048576" in error["message"]
