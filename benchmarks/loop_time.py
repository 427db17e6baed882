"""The event loop's time for a token, without a device: ``python -m benchmarks.loop_time --model FOLDER``.

Everything between the device and a reader: planning, taking in results, text from tokens, and waking whoever waits. The runner
samples at once, so the loop has nothing to wait for but its threads. Prints microseconds of the loop's thread for each token: the
least of several rounds, since a machine can only add to it. ``--profile`` prints where they go.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import random
import time
from pathlib import Path

import anyio
import numpy as np
import numpy.typing as npt

from asurge.engine.stream import TokenStream, finish_all
from asurge.outputs import RequestOutput
from asurge.params import OutputKind
from asurge.pipeline import Completion, Generation, Pipeline, PromptInfo
from asurge.plan import RowSampling, RunnerLimits, StepPlan, StepResult
from asurge.scheduler import Request, Scheduler
from asurge.text import IncrementalDetokenizer, Tokenizer, load_tokenizer

PROMPT, OUTPUT = 128, 128
KINDS: tuple[OutputKind, ...] = ("cumulative", "delta", "final")


class InstantRunner:
    """A `Runner` that samples ordinary tokens as soon as it is asked."""

    def __init__(self, limits: RunnerLimits, tokens: npt.NDArray[np.int32]) -> None:
        self.limits, self._tokens = limits, tokens
        self._rng = np.random.default_rng(0)

    def dispatch(self, plan: StepPlan) -> Sampled:
        return Sampled(plan, self._rng.choice(self._tokens, (len(plan.rows), plan.decode_steps)))


class Sampled:
    """A step that is over."""

    def __init__(self, plan: StepPlan, tokens: npt.NDArray[np.int32]) -> None:
        self._result = StepResult(plan, tokens)

    def sample(self, masks: npt.NDArray[np.uint32] | None = None) -> None:
        pass

    def wait(self) -> StepResult:
        return self._result


async def measure(tokenizer: Tokenizer, streams: int, kind: OutputKind, rounds: int) -> list[float]:
    """Microseconds of this thread for each token, by round."""
    size = tokenizer.vocab_size
    limits = RunnerLimits(streams * 8 + 1, 64, streams, 2048, 512, 32, vocab_size=size)
    pipeline = Pipeline(Scheduler(limits), InstantRunner(limits, np.arange(300, size, dtype=np.int32)))
    serial, rng, found = itertools.count(), random.Random(0), list[float]()

    async def submit(whole: bool) -> Generation:
        name, prompt = str(next(serial)), rng.choices(range(300, size), k=PROMPT)
        now = pipeline.clock()
        request = Request(name, prompt, OUTPUT, RowSampling(), arrival_s=now, streamed=kind != "final")
        completion = Completion(name, detokenizer=IncrementalDetokenizer(tokenizer, prompt))
        facts = PromptInfo(None, prompt)
        generation = Generation(name, facts, [completion], output_kind=kind, arrival_s=now, clock=pipeline.clock)
        pipeline.submit(generation, [request])
        return generation

    def stream() -> TokenStream:
        return TokenStream("", submit, pipeline.cancel)

    async def read() -> None:
        async for output in stream():
            look(output)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.run)
        for _ in range(rounds):
            began = time.thread_time()
            if kind == "final":
                await finish_all([stream() for _ in range(streams)])
            else:
                async with anyio.create_task_group() as readers:
                    for _ in range(streams):
                        readers.start_soon(read)
            found.append((time.thread_time() - began) / (streams * OUTPUT) * 1e6)
        tasks.cancel_scope.cancel()
    return found


def look(output: RequestOutput) -> object:
    """Read an output, as a reader does at the least."""
    return output.delta_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="whose tokenizer is used")
    parser.add_argument("--streams", type=int, default=64, metavar="N", help="at once (64)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="of 128 tokens each stream (7)")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.model)
    options = {"use_uvloop": given.loop == "uvloop"}
    for kind in KINDS:
        profile = cProfile.Profile(time.thread_time) if given.profile else None
        if profile is not None:
            profile.enable()
        found = anyio.run(measure, tokenizer, given.streams, kind, given.rounds, backend_options=options)
        if profile is not None:
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        print(f"{kind}: {min(found):.1f} us a token of {given.streams} streams")


if __name__ == "__main__":
    main()
