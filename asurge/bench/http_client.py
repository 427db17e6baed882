"""Requests to any server that speaks OpenAI's completions, over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import anyio
import orjson

from asurge.bench.records import Record
from asurge.errors import BenchmarkError

if TYPE_CHECKING:
    import aiohttp

_LONGEST_LINE_BYTES = 1 << 20
_SHOWN_CHARACTERS = 300


class HttpClient:
    """`asurge.bench.driver.Client` over streamed ``/v1/completions``; an async context.

    ``model`` may be None: the first that the server lists.

    Raises:
        BenchmarkError: aiohttp is missing, no server answers, it refuses the key, or does not serve the model.
    """

    def __init__(
        self, base_url: str, model: str | None = None, *, api_key: str | None = None, timeout_s: float = 600.0
    ) -> None:
        base = base_url.rstrip("/")
        self._base = base if base.endswith("/v1") else f"{base}/v1"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self.model = model

    async def __aenter__(self) -> Self:
        aiohttp = _aiohttp()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=self._timeout_s)
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            timeout=timeout,
            connector=aiohttp.TCPConnector(limit=0),
            read_bufsize=_LONGEST_LINE_BYTES,
        )
        try:
            await self._choose_model()
        except BaseException:
            await self._session.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def complete(self, prompt: Sequence[int], output_len: int, record: Record, /) -> None:
        """Complete one prompt, and count its tokens.

        Servers that count the tokens in each chunk are believed; for others, a chunk is a token.
        """
        aiohttp, session = _aiohttp(), self._open()
        body = {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": output_len,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        try:
            async with session.post(f"{self._base}/completions", json=body) as response:
                await _accept(response)
                await self._read(response, record)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise BenchmarkError(
                f"the stream broke after {record.output_tokens} tokens ({_reason(error)}): see the server's log"
            ) from error

    async def _read(self, response: aiohttp.ClientResponse, record: Record) -> None:
        tally = _Tally(record)
        async for line in response.content:  # server-sent events
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    tally.ended = True
                    break
                tally.take(orjson.loads(data), anyio.current_time())
        if not tally.ended:
            raise BenchmarkError(f"the server closed the stream after {record.output_tokens} tokens: see its log")
        if tally.counted is not None:
            record.settle(tally.counted)

    async def _choose_model(self) -> None:
        aiohttp, url = _aiohttp(), f"{self._base}/models"
        try:
            async with self._open().get(url) as response:
                if response.status in (404, 405):
                    listed: list[str] = []
                else:
                    await _accept(response)
                    listed = [str(item["id"]) for item in orjson.loads(await response.read()).get("data", ())]
        except (aiohttp.ClientError, TimeoutError) as error:
            raise BenchmarkError(
                f"no server answers at {url} ({_reason(error)}): start it, or give its address with --base-url"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchmarkError(f"{url} is not an OpenAI-compatible list of models ({error!r})") from error
        if self.model is None:
            if not listed:
                raise BenchmarkError(f"{url} lists no model: name it with --model")
            self.model = listed[0]
        elif listed and self.model not in listed:
            raise BenchmarkError(f"the server does not serve {self.model!r} but {', '.join(listed)}: use one of them")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise BenchmarkError("the client is not connected: use `async with`")
        return self._session


class _Tally:
    """Counts the tokens of one stream."""

    def __init__(self, record: Record) -> None:
        self.counted: int | None = None
        self.ended = False
        self._record, self._delivered = record, 0

    def take(self, chunk: dict[str, Any], at_s: float) -> None:
        """Read one server-sent event.

        Raises:
            BenchmarkError: it says that the request failed.
        """
        if chunk.get("error"):
            raise BenchmarkError(f"the server reported an error in the stream: {_shorten(chunk['error'])}")
        usage = chunk.get("usage") or {}
        counted = usage.get("completion_tokens")
        self.counted = self.counted if counted is None else counted
        self._record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        for choice in chunk.get("choices") or ():
            finished = choice.get("finish_reason") is not None
            self.ended = self.ended or finished
            alone = 0 if finished and not choice.get("text") else 1
            new = alone if counted is None else counted - self._delivered
            if new > 0:
                self._record.deliver(at_s, new)
                self._delivered += new


async def _accept(response: aiohttp.ClientResponse) -> None:
    if response.status == 200:
        return
    body = _shorten((await response.read()).decode(errors="replace"))
    hint = ": give the right key with --api-key" if response.status in (401, 403) else ""
    raise BenchmarkError(f"{response.url} answers {response.status} ({body}){hint}")


def _aiohttp() -> Any:  # a module that may be missing
    try:
        import aiohttp
    except ImportError as error:
        raise BenchmarkError("measuring a server needs aiohttp: pip install asurge[server]") from error
    return aiohttp


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _shorten(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}..."
