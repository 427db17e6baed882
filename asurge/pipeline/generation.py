"""One request's text as it grows, and the mailbox its reader takes it from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import anyio

from asurge.outputs import CompletionOutput, FinishReason, RequestOutput
from asurge.params import OutputKind


class Detokenizer(Protocol):
    """Turns token ids into text, a few at a time (`asurge.text.IncrementalDetokenizer`)."""

    def push(self, token_ids: Sequence[int], /) -> str: ...

    def flush(self) -> str: ...


class StopScan(Protocol):
    """What a stop matcher says of a piece of text."""

    @property
    def text(self) -> str: ...

    @property
    def matched(self) -> str | None: ...


class StopMatcher(Protocol):
    """Holds back what may become a stop string (`asurge.text.StopMatcher`)."""

    def push(self, delta: str, /) -> StopScan: ...

    def flush(self) -> str: ...


class Generation:
    """The engine's side writes with `extend`, `finish` and `fail`; the reader waits with `wait_output`.

    A reader that falls behind finds what it missed merged into its next output, so memory is bounded by
    the text itself and nobody waits for a slow reader. After the first `finish` or `fail` all writes are void:
    every request ends exactly once.
    """

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        *,
        detokenizer: Detokenizer | None,
        stops: StopMatcher | None,
        silent_token_ids: frozenset[int],
        output_kind: OutputKind,
        num_truncated_tokens: int,
        arrival_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.request_id = request_id
        self.arrival_s = arrival_s
        self.first_token_s: float | None = None
        self.last_token_s = arrival_s
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self.token_ids: list[int] = []
        self._prompt, self._prompt_token_ids = prompt, prompt_token_ids
        self._detokenizer, self._stops, self._silent = detokenizer, stops, silent_token_ids
        self._kind, self._clock = output_kind, clock
        self._truncated, self._cached = num_truncated_tokens, 0
        self._stop_reason: str | int | None = None
        self._text = ""
        self._taken_text, self._taken_tokens = 0, 0
        self._updates, self._deltas = 0, 0
        self._news = anyio.Event()

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def extend(self, token_ids: Sequence[int], num_cached_tokens: int) -> str | None:
        """Append sampled tokens. Returns the stop string they complete, if any; the caller then finishes."""
        if self.finished or not token_ids:
            return None
        now = self._clock()
        self.first_token_s = now if self.first_token_s is None else self.first_token_s
        self.last_token_s, self._cached = now, num_cached_tokens
        matched = self._take(token_ids)
        self._publish()
        return matched

    def _take(self, token_ids: Sequence[int]) -> str | None:
        """Tokens behind the one that completes a stop string are void."""
        if self._stops is None or self._detokenizer is None:
            self.token_ids.extend(token_ids)
            if self._detokenizer is not None:
                self._append(self._detokenizer.push([token for token in token_ids if token not in self._silent]))
            return None
        for token in token_ids:
            self.token_ids.append(token)
            if token not in self._silent and (matched := self._append(self._detokenizer.push([token]))) is not None:
                return matched
        return None

    def finish(self, reason: FinishReason, stop_reason: str | int | None = None) -> None:
        """End the request; the first end counts."""
        if self.finished:
            return
        if reason == "length" or (reason == "stop" and not isinstance(stop_reason, str)):
            stop_reason, reason = self._release(reason, stop_reason)
        self.finish_reason, self._stop_reason = reason, stop_reason
        self._publish()

    def fail(self, error: BaseException) -> None:
        """End the request with an error, which the reader gets raised."""
        if not self.finished:
            self.finish_reason, self.error = "error", error
            self._publish()

    async def wait_output(self) -> RequestOutput:
        """The state since the last call, once there is news. After the end: the final state.

        Raises:
            AsurgeError: the request failed.
        """
        while not self._ready():
            await self._news.wait()
        if self.error is not None:
            raise self.error
        return self._snapshot()

    def _ready(self) -> bool:
        if self.finished:
            return True
        self._news = anyio.Event() if self._news.is_set() else self._news
        return self._kind != "final" and len(self.token_ids) > self._taken_tokens

    def _append(self, piece: str) -> str | None:
        matched = None
        if self._stops is not None and piece:
            scan = self._stops.push(piece)
            piece, matched = scan.text, scan.matched
        self._deltas += bool(piece)
        self._text += piece
        return matched

    def _release(self, reason: FinishReason, stop_reason: str | int | None) -> tuple[str | int | None, FinishReason]:
        """Give out what was held back: an unfinished character, the beginning of a stop string."""
        if self._detokenizer is not None:
            matched = self._append(self._detokenizer.flush())
            if matched is not None:
                return matched, "stop"
            if self._stops is not None:
                self._text += self._stops.flush()
        return stop_reason, reason

    def _publish(self) -> None:
        self._updates += 1
        self._news.set()

    def _snapshot(self) -> RequestOutput:
        now = self.last_token_s if self.finished else self._clock()
        count, begun = len(self.token_ids), self.first_token_s
        generating = 0.0 if begun is None else max(self.last_token_s - begun, 0.0)
        delta_text, delta_ids = self._text[self._taken_text :], self.token_ids[self._taken_tokens :]
        self._taken_text, self._taken_tokens = len(self._text), count
        delta = self._kind == "delta"
        completion = CompletionOutput(
            index=0,
            text=delta_text if delta else self._text,
            token_ids=delta_ids if delta else list(self.token_ids),
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
        )
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt,
            prompt_token_ids=self._prompt_token_ids,
            outputs=[completion],
            finished=self.finished,
            accumulated_text=self._text,
            delta_text=delta_text,
            # The first token belongs to the prompt's step, so the rate is over the ones after it.
            tokens_per_second=(count - 1) / generating if generating > 0 else 0.0,
            num_generated_tokens=count,
            num_cached_tokens=self._cached,
            num_truncated_tokens=self._truncated,
            time_spent_generating=generating,
            first_token_time=None if begun is None else begun - self.arrival_s,
            processing_time=now - self.arrival_s,
            update_seq=self._updates,
            delta_seq=self._deltas,
        )
