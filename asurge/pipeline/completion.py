"""A completion in progress: tokens, text, and what is reported about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from asurge.outputs import CompletionOutput, FinishReason, Logprob
from asurge.pipeline.logprobs import LogprobFormatter
from asurge.scheduler import SequenceUpdate


class Detokenizer(Protocol):
    """Turns token ids into text, a few at a time (`asurge.text.IncrementalDetokenizer`)."""

    def push(self, token_ids: Sequence[int], /) -> str: ...

    def flush(self) -> str: ...


class StopScan(Protocol):
    """A stop matcher's result for a piece of text."""

    @property
    def text(self) -> str: ...

    @property
    def matched(self) -> str | None: ...


class StopMatcher(Protocol):
    """Holds back what may become a stop string (`asurge.text.StopMatcher`)."""

    def push(self, delta: str, /) -> StopScan: ...

    def flush(self) -> str: ...


class RepetitionStop(Protocol):
    """Tells when a text only repeats itself (`asurge.guidance.RepetitionStop`)."""

    def push(self, token: int, /) -> bool: ...


REPETITION = "repetition"
"""The stop reason of a text that `RepetitionStop` ended."""


class Completion:
    """A completion in progress.

    The engine writes with `extend` and `finish`; after `finish`, writes are ignored.

    Attributes:
        sequence_id: its name in the scheduler.
        started_s: when the first step with some of its prompt was planned.
        text: all text so far, that of the prompt first where it is echoed.
        embedding: float32 ``[hidden]``, for a request that asks for one and ends with it.
    """

    def __init__(
        self,
        sequence_id: str,
        index: int = 0,
        *,
        detokenizer: Detokenizer | None = None,
        stops: StopMatcher | None = None,
        repetition: RepetitionStop | None = None,
        teller: LogprobFormatter | None = None,
        silent_token_ids: frozenset[int] = frozenset(),
        echoed: str = "",
    ) -> None:
        self.sequence_id, self.index = sequence_id, index
        self.token_ids: list[int] = []
        self.text = echoed
        self.embedding: npt.NDArray[np.float32] | None = None
        self.finish_reason: FinishReason | None = None
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None
        self.num_cached_tokens = 0
        self.updates, self.deltas = 0, 0
        self.publish: Callable[[], None] = lambda: None
        self._detokenizer, self._stops, self._silent = detokenizer, stops, silent_token_ids
        self._repetition, self._teller = repetition, teller
        self._stop_reason: str | int | None = None
        self._logprobs: list[dict[int, Logprob]] | None = None if teller is None else []
        self._cumulative = 0.0
        self._taken_text, self._taken_tokens = 0, 0

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def cumulative_logprob(self) -> float | None:
        """The sum over all tokens; None if logprobs were not asked for."""
        return None if self._teller is None else self._cumulative

    def extend(self, update: SequenceUpdate, now: float) -> str | None:
        """Append sampled tokens, or take the embedding; return what ends the text, if anything does.

        That is a stop string or `REPETITION`; the caller then finishes.
        """
        if self.finished:
            return None
        if update.embedding is not None:
            self.embedding, self.last_token_s, self.num_cached_tokens = update.embedding, now, update.num_cached_tokens
        if not update.token_ids:
            return None
        self.first_token_s = now if self.first_token_s is None else self.first_token_s
        self.last_token_s, self.num_cached_tokens = now, update.num_cached_tokens
        if self._teller is not None and self._logprobs is not None and update.logprobs is not None:
            self._logprobs += self._teller.tell(update.token_ids, update.logprobs)
            self._cumulative += float(update.logprobs.chosen.sum())
        matched = self._take(update.token_ids)
        self._tell()
        return matched

    def _take(self, token_ids: Sequence[int]) -> str | None:
        """Tokens after the one that completes a stop string are void."""
        if self._stops is None and self._repetition is None:
            self.token_ids.extend(token_ids)
            if self._detokenizer is not None:
                self._append(self._detokenizer.push([token for token in token_ids if token not in self._silent]))
            return None
        for token in token_ids:
            self.token_ids.append(token)
            if self._detokenizer is not None and token not in self._silent:
                matched = self._append(self._detokenizer.push([token]))
                if matched is not None:
                    return matched
            if self._repetition is not None and self._repetition.push(token):
                return REPETITION
        return None

    def finish(self, reason: FinishReason, stop_reason: str | int | None = None) -> None:
        """End the completion; the first end counts."""
        if self.finished:
            return
        if reason == "length" or (reason == "stop" and (not isinstance(stop_reason, str) or stop_reason == REPETITION)):
            stop_reason, reason = self._release(reason, stop_reason)
        self.finish_reason, self._stop_reason = reason, stop_reason
        self._tell()

    def _append(self, piece: str) -> str | None:
        matched = None
        if self._stops is not None and piece:
            scan = self._stops.push(piece)
            piece, matched = scan.text, scan.matched
        self.deltas += bool(piece)
        self.text += piece
        return matched

    def _release(self, reason: FinishReason, stop_reason: str | int | None) -> tuple[str | int | None, FinishReason]:
        """Give out what was held back: an unfinished character, the beginning of a stop string."""
        if self._detokenizer is not None:
            matched = self._append(self._detokenizer.flush())
            if matched is not None:
                return matched, "stop"
            if self._stops is not None:
                self.text += self._stops.flush()
        return stop_reason, reason

    def _tell(self) -> None:
        self.updates += 1
        self.publish()

    def take(self, *, delta: bool) -> tuple[CompletionOutput, str]:
        """The completion so far, or what is new in it; and the text that is new since the last call."""
        begun, fresh = self._taken_tokens, self.text[self._taken_text :]
        self._taken_text, self._taken_tokens = len(self.text), len(self.token_ids)
        logprobs = self._logprobs
        output = CompletionOutput(
            index=self.index,
            text=fresh if delta else self.text,
            token_ids=self.token_ids[begun if delta else 0 :],
            cumulative_logprob=self.cumulative_logprob,
            logprobs=None if logprobs is None else logprobs[begun if delta else 0 : len(self.token_ids)],
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
        )
        return output, fresh
