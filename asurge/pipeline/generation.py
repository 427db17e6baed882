"""A request's completions, and the mailbox their reader takes them from."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence

from asurge.errors import DeadlineExceededError
from asurge.outputs import RequestOutput
from asurge.params import OutputKind
from asurge.pipeline.completion import Completion
from asurge.pipeline.logprobs import PromptLogprobs


@dataclasses.dataclass(frozen=True, slots=True)
class PromptInfo:
    """Information about a prompt for outputs."""

    text: str | None
    token_ids: list[int]
    num_truncated_tokens: int = 0
    num_dropped_messages: int = 0
    capped_max_tokens: int | None = None
    logprobs: PromptLogprobs | None = None


class Generation:
    """The engine writes through the `Completion`s and `fail`; the reader waits with `wait_output`.

    A reader that falls behind finds what it missed merged into its next output, so memory is bounded by the texts
    themselves and nobody waits for a slow reader. Every request ends exactly once.

    Args:
        completions: its completions.
        kept: how many of them, the likeliest, are reported at the end; where that is not all (OpenAI's best_of),
            ``output_kind`` is "final".
        max_tokens: of each completion; 0 for an embedding.

    Attributes:
        relaxed: what a schema requires of the text and no grammar can express.
    """

    def __init__(
        self,
        request_id: str,
        prompt: PromptInfo,
        completions: Sequence[Completion],
        *,
        kept: int | None = None,
        output_kind: OutputKind = "cumulative",
        max_tokens: int = 0,
        arrival_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.request_id, self.prompt, self.completions = request_id, prompt, tuple(completions)
        self.max_tokens, self.arrival_s = max_tokens, arrival_s
        self.relaxed: Sequence[str] = ()
        self.error: BaseException | None = None
        self._kept = len(self.completions) if kept is None else kept
        self._kind = output_kind
        self._clock = clock
        # anyio's events are set once; a new one for each token took a tenth of the loop's time.
        self._news = asyncio.Event()
        for completion in self.completions:
            completion.publish = self._publish

    @property
    def finished(self) -> bool:
        # Loops, here and below: all of this is asked for each token, and a generator takes twice as long.
        if self.error is not None:
            return True
        for completion in self.completions:  # noqa: SIM110
            if completion.finish_reason is None:
                return False
        return True

    @property
    def started_s(self) -> float | None:
        """When the first completion's wait was over."""
        return min([one.started_s for one in self.completions if one.started_s is not None], default=None)

    @property
    def first_token_s(self) -> float | None:
        """When the first token of any completion came."""
        first: float | None = None
        for completion in self.completions:
            at = completion.first_token_s
            if at is not None and (first is None or at < first):
                first = at
        return first

    @property
    def last_token_s(self) -> float:
        """When the last one, or the embedding, came; the arrival if none did."""
        last = self.arrival_s
        for completion in self.completions:
            at = completion.last_token_s
            if at is not None and at > last:
                last = at
        return last

    def fail(self, error: BaseException) -> None:
        """End the request with an error, which is raised to the reader."""
        if not self.finished:
            self.error = error
            self._publish()

    def late(self) -> DeadlineExceededError:
        """The error it fails with when its deadline passes."""
        waited = self._clock() - self.arrival_s
        return DeadlineExceededError(
            f"request {self.request_id!r} did not finish within its deadline ({waited:.3g} s): allow more"
        )

    async def wait_output(self) -> RequestOutput:
        """The state since the last call, once there is news. After the end: the final state.

        Raises:
            AsurgeError: the request failed.
        """
        while not self._news.is_set():  # another reader may take the news before this one wakes
            await self._news.wait()
        if self.error is not None:
            raise self.error
        output = self._snapshot()
        if not output.finished:
            self._news.clear()
        return output

    def take_whole(self) -> None:
        """Report nothing before the end, and then everything."""
        self._kind = "final"
        if not self.finished:
            self._news.clear()

    def _publish(self) -> None:
        if self._kind != "final" or self.finished:
            self._news.set()

    def _best(self) -> Sequence[Completion]:
        if self._kept == len(self.completions):
            return self.completions
        ranked = sorted(self.completions, key=lambda completion: -(completion.cumulative_logprob or 0.0))[: self._kept]
        for index, completion in enumerate(ranked):
            completion.index = index
        return ranked

    def _snapshot(self) -> RequestOutput:
        completions = self._best()
        begun, last_s, finished = self.first_token_s, self.last_token_s, self.finished
        now = last_s if finished else self._clock()
        generating = 0.0 if begun is None else max(last_s - begun, 0.0)
        count = firsts = updates = deltas = 0
        for completion in completions:
            count += len(completion.token_ids)
            firsts += completion.first_token_s is not None
        for completion in self.completions:
            updates, deltas = updates + completion.updates, deltas + completion.deltas
        taken = [completion.take(delta=self._kind == "delta") for completion in completions]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt.text,
            prompt_token_ids=self.prompt.token_ids,
            prompt_logprobs=self.prompt.logprobs,
            outputs=[output for output, _ in taken],
            finished=finished,
            accumulated_text=completions[0].text,
            delta_text=taken[0][1],
            # The first token belongs to the prompt's step, so the rate is over the ones after it.
            tokens_per_second=(count - firsts) / generating if generating > 0 else 0.0,
            num_generated_tokens=count,
            num_cached_tokens=completions[0].num_cached_tokens,
            num_truncated_tokens=self.prompt.num_truncated_tokens,
            num_dropped_messages=self.prompt.num_dropped_messages,
            capped_max_tokens=self.prompt.capped_max_tokens,
            relaxed=self.relaxed,
            time_spent_generating=generating,
            first_token_time=None if begun is None else begun - self.arrival_s,
            processing_time=now - self.arrival_s,
            update_seq=updates,
            delta_seq=deltas,
        )
