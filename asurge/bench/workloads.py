"""Workloads: how many requests an engine gets, how long they are, and how they arrive."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from asurge.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests of fixed lengths; prompts are random token ids, so that text and tokenizer play no part.

    Attributes:
        requests: in one round.
        input_len / output_len: tokens of each prompt (the shared ones included) and of each answer.
        concurrency: requests open at once; None: all of them.
        rate: requests a second, arriving as a Poisson process; None: all at once.
        shared_prefix: tokens that the prompts of a round have in common.
        rounds: repetitions with other prompts; each starts when the previous one is over.

    Raises:
        ConfigError: a value is out of range.
    """

    name: str
    requests: int
    input_len: int
    output_len: int
    concurrency: int | None = None
    rate: float | None = None
    shared_prefix: int = 0
    rounds: int = 1

    def __post_init__(self) -> None:
        for field in ("requests", "input_len", "output_len", "rounds"):
            value = getattr(self, field)
            if value < 1:
                raise ConfigError(f"{field}={value} of workload {self.name!r} must be at least 1")
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError(f"concurrency={self.concurrency} of workload {self.name!r} must be at least 1")
        if self.rate is not None and not self.rate > 0:
            raise ConfigError(f"rate={self.rate!r} of workload {self.name!r} must be positive")
        if not 0 <= self.shared_prefix < self.input_len:
            raise ConfigError(
                f"shared_prefix={self.shared_prefix} of workload {self.name!r} must be at least 0 and below the "
                f"input_len of {self.input_len}: each prompt needs a token of its own"
            )

    @property
    def total_len(self) -> int:
        """Tokens of a prompt and its answer."""
        return self.input_len + self.output_len

    @property
    def most_open(self) -> int:
        """Requests that can be open at once."""
        return min(self.requests, self.concurrency or self.requests)

    def prompts(self, vocab_size: int, seed: int = 0) -> list[list[list[int]]]:
        """Token ids by round and request. The same seed makes the same prompts."""
        rng = random.Random(seed)
        vocabulary = range(vocab_size)
        rounds = []
        for _ in range(self.rounds):
            shared = rng.choices(vocabulary, k=self.shared_prefix)
            own = self.input_len - self.shared_prefix
            rounds.append([shared + rng.choices(vocabulary, k=own) for _ in range(self.requests)])
        return rounds

    def arrivals_s(self, seed: int = 0) -> list[float]:
        """When each request of a round arrives, in seconds after its start."""
        if self.rate is None:
            return [0.0] * self.requests
        rng, at_s, arrivals = random.Random(seed), 0.0, []
        for _ in range(self.requests):
            arrivals.append(at_s)
            at_s += rng.expovariate(self.rate)
        return arrivals


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(name="w1", requests=1, input_len=128, output_len=128, rounds=5),  # one stream
        Workload(name="w2", requests=64, input_len=128, output_len=128),
        Workload(name="w3", requests=32, input_len=544, output_len=32, shared_prefix=512),
        Workload(name="w4", requests=1, input_len=2048, output_len=16, rounds=3),  # a long prompt
        Workload(name="w5", requests=64, input_len=128, output_len=128, concurrency=32),
        Workload(name="w6", requests=8, input_len=128, output_len=128),
        Workload(name="w7", requests=256, input_len=32, output_len=64),
    )
}
"""The workloads by which engines are compared."""


def named_workload(name: str) -> Workload:
    """Return the workload of `WORKLOADS` with this name.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in WORKLOADS:
        raise ConfigError(f"there is no workload {name!r}: the workloads are {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


def seeded_workloads(names: Sequence[str], seed: int) -> list[tuple[Workload, int]]:
    """Workloads by name, each with a seed of its own, so that no two have a prompt in common."""
    return [(named_workload(name), seed + 1000 * at) for at, name in enumerate(names)]
