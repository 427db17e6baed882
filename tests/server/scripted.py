"""Streams that say what a test wants."""

from __future__ import annotations

import random

import anyio

from asurge.outputs import CompletionOutput, RequestOutput


class Scripted:
    """Stands in for a `TokenStream`: outputs, pauses and errors by a script."""

    def __init__(self, *script: str | float | Exception) -> None:
        self._script = list(script)
        self.closed, self._said = False, 0
        self.request_id = "scripted"

    @property
    def usage(self) -> tuple[int, int]:
        return 1, 1

    def __aiter__(self) -> Scripted:
        return self

    async def __anext__(self) -> RequestOutput:
        while self._script:
            step = self._script.pop(0)
            if isinstance(step, Exception):
                raise step
            if isinstance(step, str):
                last = not self._script
                self._said += len(step)  # a token for each character
                one = CompletionOutput(0, step, [1], finish_reason="stop" if last else None)
                return RequestOutput("scripted", "", [1], [one], finished=last, num_generated_tokens=self._said)
            await anyio.sleep(step)
        raise StopAsyncIteration

    async def __aenter__(self) -> Scripted:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True

    async def wait_finished(self) -> RequestOutput:
        """All text at once, as a whole answer has it."""
        text, last = "", None
        async for output in self:
            text, last = text + output.outputs[0].text, output
        assert last is not None
        last.outputs[0].text = text
        return last


def pieces(text: str, seed: int) -> list[str]:
    """A text cut at random."""
    cuts = sorted(random.Random(seed).sample(range(1, len(text)), min(12, len(text) - 1)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
