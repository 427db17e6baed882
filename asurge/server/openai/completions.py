"""``POST /v1/completions``."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
import msgspec
import orjson
from aiohttp import web
from msgspec import UNSET

from asurge.engine.stream import TokenStream, finish_all
from asurge.outputs import CompletionOutput, Logprob, RequestOutput
from asurge.params import SamplingParams
from asurge.server.chat.tools import relaxed
from asurge.server.config import ServerConfig
from asurge.server.errors import ApiError
from asurge.server.exchange import Exchange, with_bounded_logprobs
from asurge.server.http.body import read, reply
from asurge.server.http.disconnect import while_connected
from asurge.server.http.sse import EventStream
from asurge.server.openai.chat import id_text, prompt_logprobs_of
from asurge.server.openai.stop_reason import stop_reason_of
from asurge.server.schema.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from asurge.server.schema.sampling import Usage
from asurge.server.state import Served
from asurge.text import IncrementalDetokenizer

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""


async def completions(request: web.Request) -> web.StreamResponse:
    """Continue texts."""
    body = await read(request, CompletionRequest)
    with Exchange(request) as exchange:
        served = exchange.state.find(body.model)
        prompts = await exchange.prepared(lambda: prompts_of("prompt", body.prompt, exchange.state.config))
        _check_choices(body, len(prompts), exchange.state.config)
        params = await exchange.prepared(lambda: _params(body, served))
        exchange.relaxes(await exchange.prepared(lambda: relaxed(body.form())))
        params = with_bounded_logprobs(params, [len(prompt) for prompt in prompts], served, exchange.state.config)
        options = exchange.options(body)
        exchange.charges_sampled = not body.scores
        streams = [exchange.follow(served, served.engine.stream(prompt, params, **options)) for prompt in prompts]
        answer = CompletionAnswer(body, served)
        if body.streams:
            return await exchange.streamed(lambda events: answer.stream(exchange, streams, events))
        outputs = await while_connected(exchange.request, lambda: finish_all(streams))
        ended = [exchange.ended_well(output) for output in outputs]
        return reply(
            await exchange.written(lambda: msgspec.json.encode(answer.whole(ended)), much=body.tells_of_tokens)
        )


def prompts_of(field: str, given: str | Sequence[str | int | list[int]], config: ServerConfig) -> list[str | list[int]]:
    """The prompts that a field holds: a text or token ids, or several.

    Raises:
        ApiError: none, too many, or of different kinds.
    """
    prompts = list[str | list[int]]()
    if isinstance(given, str):
        prompts = [given]
    elif texts := [one for one in given if not isinstance(one, int)]:
        if len(texts) < len(given):
            raise ApiError(f"{field} mixes token ids with texts or lists: use one kind", param=field)
        prompts = texts
    elif given:
        prompts = [[one for one in given if isinstance(one, int)]]
    if not prompts:
        raise ApiError(f"{field} is empty: give at least one", param=field, code="invalid_value")
    if len(prompts) > config.max_prompts:
        raise ApiError(f"{field} has {len(prompts)} entries: at most {config.max_prompts} are allowed", param=field)
    return prompts


def _check_choices(body: CompletionRequest, prompts: int, config: ServerConfig) -> None:
    """Raises:
    ApiError: too many completions of all prompts.
    """
    choices = prompts * max(body.n or 1, body.best_of or 1)
    if choices > config.max_choices:
        raise ApiError(
            f"the request asks for {choices} completions: at most {config.max_choices} are allowed", param="n"
        )


def _params(body: CompletionRequest, served: Served) -> SamplingParams:
    body.check()
    if body.suffix:
        raise ApiError("suffix is not supported: put what follows into the prompt", param="suffix")
    own: dict[str, Any] = {
        name: value for name in ("best_of", "echo", "logprobs") if (value := getattr(body, name)) is not None
    }
    if body.streams and body.best_of is not None and body.best_of > (body.n or 1):
        raise ApiError("best_of cannot be streamed: leave out stream or best_of", param="best_of")
    if body.echo and body.logprobs is not None:
        own["prompt_logprobs"] = body.logprobs
    if body.scores:
        own["max_tokens"] = 1
    else:
        own["max_tokens"] = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    return body.params(served.engine.tokenizer.sampling_defaults, **own)


class CompletionAnswer:
    """Answer of a completion request, streamed or whole."""

    def __init__(self, body: CompletionRequest, served: Served) -> None:
        self._body, self._model, self._tokenizer = body, body.model or served.name, served.engine.tokenizer
        self._id, self._created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        self._per_prompt = body.n or 1
        self._offsets: dict[int, int] = {}
        self._pieces: dict[int, IncrementalDetokenizer] = {}
        head = {"id": self._id, "object": "text_completion", "created": self._created, "model": self._model, "system_fingerprint": None}  # fmt: skip
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":[{"index":'
        usage = b',"usage":null}\n\n' if body.tells_usage else b"}\n\n"
        self._tail = b',"logprobs":null,"finish_reason":null,"stop_reason":null}]' + usage

    def whole(self, outputs: Sequence[RequestOutput]) -> Completion:
        choices = [
            self._choice(at * self._per_prompt + one.index, one, output)
            for at, output in enumerate(outputs)
            for one in output.outputs
        ]
        return self._completion(choices, self._usage(outputs))

    async def stream(self, exchange: Exchange, streams: Sequence[TokenStream], events: EventStream) -> None:
        """Stream what comes for all prompts; then the usage if wanted, and the mark of success."""
        last: dict[int, RequestOutput] = {}

        async def follow(at: int) -> None:
            finished: set[int] = set()
            async for output in exchange.outputs(streams[at]):
                news = [one for one in output.outputs if one.index not in finished]
                chunks = functools.partial(self._chunks, at, news, output)
                # The first reports the prompt's tokens, too.
                data = chunks() if at in last else await exchange.written(chunks, much=self._body.tells_of_tokens)
                last[at] = output
                finished |= {one.index for one in output.outputs if one.finish_reason is not None}
                if data:
                    await events.send(data)

        async with anyio.create_task_group() as tasks:
            for at in range(len(streams)):
                tasks.start_soon(follow, at)
        outputs = [last[at] for at in sorted(last)]
        end = b""
        if self._body.tells_usage:
            end = b"data: " + msgspec.json.encode(self._completion([], self._usage(outputs))) + b"\n\n"
        await events.send(end + b"data: [DONE]\n\n")

    def _chunks(self, at: int, news: Sequence[CompletionOutput], output: RequestOutput) -> bytes:
        return b"".join(self._chunk(at, one, output) for one in news)

    def _chunk(self, at: int, one: CompletionOutput, output: RequestOutput) -> bytes:
        index = at * self._per_prompt + one.index
        plain = one.finish_reason is None and one.logprobs is None
        plain = plain and not self._body.tells_usage_always and not self._body.return_token_ids
        if plain:
            return self._head + b'%d,"text":' % index + orjson.dumps(one.text) + self._tail if one.text else b""
        usage = self._usage([output]) if self._body.tells_usage_always else None if self._body.tells_usage else UNSET
        completion = self._completion([self._choice(index, one, output)], usage)
        return b"data: " + msgspec.json.encode(completion) + b"\n\n"

    def _choice(self, index: int, one: CompletionOutput, output: RequestOutput) -> CompletionChoice:
        text, logprobs = one.text, None
        begins = index not in self._offsets
        if self._body.scores:
            ids = output.prompt_token_ids
            text = self._tokenizer.decode(ids) if output.prompt is None else output.prompt
        if self._body.logprobs is not None:
            logprobs = self._logprobs(index, one, output, begins=begins)
        prompt_logprobs = None if self._body.prompt_logprobs is None else output.prompt_logprobs
        choice = CompletionChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=one.finish_reason,
            stop_reason=stop_reason_of(one, self._body),
        )
        if begins and prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs_of(prompt_logprobs, self._tokenizer)
        if self._body.return_token_ids:
            choice.token_ids = [] if self._body.scores else list(one.token_ids)
            if begins:
                choice.prompt_token_ids = list(output.prompt_token_ids)
        self._offsets.setdefault(index, 0)
        return choice

    def _logprobs(
        self, index: int, one: CompletionOutput, output: RequestOutput, *, begins: bool
    ) -> CompletionLogprobs:
        """Those of new tokens, after those of the prompt where it is echoed. Their texts add up to the completion's: of tokens
        that are pieces of a character, the last one has it; special tokens that are left out of it have their names."""
        tokens: list[tuple[int, Mapping[int, Logprob] | None]] = []
        echo = self._body.echo and output.prompt_logprobs is not None
        if begins and echo:
            tokens += zip(output.prompt_token_ids, output.prompt_logprobs or (), strict=False)
        if not self._body.scores:
            tokens += zip(one.token_ids, one.logprobs or (), strict=False)
        found = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
        offset, most = self._offsets.get(index, 0), self._body.logprobs or 0
        pieces = self._pieces.get(index)
        if pieces is None:
            before = () if echo else output.prompt_token_ids
            skips = self._body.skip_special_tokens is not False
            pieces = IncrementalDetokenizer(self._tokenizer, before, skip_special_tokens=skips)
            self._pieces[index] = pieces
        by_id = self._body.return_tokens_as_token_ids
        for token, at in tokens:
            text = pieces.push([token])
            data = self._tokenizer.token_bytes(token)
            found.text_offset.append(offset)
            shown_text = text if text or not _is_whole(data) else data.decode()
            found.tokens.append(id_text(token) if by_id else shown_text)
            found.token_logprobs.append(None if at is None else at[token].logprob)
            # The sampled token is always among them: clients look for its rank there.
            shown = {} if at is None else {name: one for name, one in at.items() if one.rank <= most or name == token}
            top = {
                id_text(name) if by_id else _name(self._tokenizer.token_bytes(name)): one.logprob
                for name, one in shown.items()
            }
            found.top_logprobs.append(None if at is None else top)
            offset += len(text)
        if one.finish_reason is not None and found.tokens and not by_id and (rest := pieces.flush()):
            found.tokens[-1] += rest
        self._offsets[index] = offset
        return found

    def _completion(self, choices: list[CompletionChoice], usage: Any) -> Completion:
        return Completion(id=self._id, created=self._created, model=self._model, choices=choices, usage=usage)

    def _usage(self, outputs: Sequence[RequestOutput]) -> Usage:
        """The tokens of all prompts so far."""
        return Usage.of(
            sum(len(output.prompt_token_ids) for output in outputs),
            0 if self._body.scores else sum(output.num_generated_tokens for output in outputs),
            sum(output.num_cached_tokens for output in outputs),
        )


def _is_whole(data: bytes) -> bool:
    """Whether a token consists of whole characters."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _name(data: bytes) -> str:
    """A token by its text; pieces of characters, which would all look alike, by their bytes, as OpenAI names them."""
    return data.decode() if _is_whole(data) else "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
