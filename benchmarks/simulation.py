"""Scheduling policies over a simulated device: the real scheduler, a time model, a virtual clock, seeds.

``python -m benchmarks.simulation`` runs every scenario with 10,000 requests under each policy, prints a table and draws
``docs/scheduling.svg``; it takes a minute or two, and gives the same figures everywhere. ``--device`` chooses the times that a
step takes: ``cpu`` is S on two cores, as measured (`docs/performance.md`); ``large`` is a device we do not have.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from asurge.config import CacheConfig, SchedulerConfig
from asurge.plan import RowSampling, RunnerLimits, StepPlan, StepResult
from asurge.scheduler import Request, Scheduler, SchedulerStatistics

ROOT = Path(__file__).parent


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """A simulated device: times that make up a step, in seconds, and its token budget.

    Attributes:
        step_s: reading the weights.
        token_s: each token.
        context_s: each token of context that a decode row reads; a chunk's tokens share their reads.
        depth: steps in flight.
    """

    limits: RunnerLimits
    step_s: float
    token_s: float
    context_s: float
    depth: int = 2

    def time_s(self, plan: StepPlan) -> float:
        tokens = sum(row.num_tokens for row in plan.rows)
        context = sum(row.start for row in plan.decode) + 0.1 * sum(row.start * row.num_tokens for row in plan.prefill)
        return self.step_s + self.token_s * tokens + self.context_s * context


def _limits(pages: int, slots: int, budget: int) -> RunnerLimits:
    return RunnerLimits(pages, 64, slots, budget, 16384, prefill_quantum=32)


DEVICES = {
    "cpu": Device(_limits(1500, 64, 512), 9e-3, 0.2e-3, 0.3e-6),
    "large": Device(_limits(40_000, 1024, 8192), 12e-3, 4e-6, 3e-9),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Scenario:
    """A kind of load, what is examined, and the policies that are compared.

    Attributes:
        requests: ``(count, seed, load) -> requests`` in order of arrival; ``load`` is in requests a second.
        groups: by name, which requests a column of figures is about.
        load: requests a second on the CPU device.
    """

    title: str
    requests: Callable[[int, int, float], list[Request]]
    groups: dict[str, Callable[[Request], bool]]
    policies: dict[str, tuple[SchedulerConfig, CacheConfig]]
    load: float


@dataclasses.dataclass(slots=True)
class Outcome:
    """Outcome of the requests of one run; times in seconds."""

    requests: list[Request]
    first_token_s: dict[str, float]
    end_s: dict[str, float]
    statistics: SchedulerStatistics
    host_s: float
    steps: int
    served: dict[str, float]

    def percentile(self, group: Callable[[Request], bool], share: float) -> float:
        """Percentiles of the times to the first token."""
        waits = [self.first_token_s[one.sequence_id] - one.arrival_s for one in self.requests if group(one)]
        return float(np.percentile(waits, share))

    @property
    def fairness(self) -> float:
        """Jain's index over the tenants: 1 is equal, 1 / tenants is all to one.

        It is taken over the share of each tenant's entitlement that was served while the load lasted; a tenant is entitled to
        what it asked for, but to at most an equal part of all that was served.
        """
        asked = defaultdict[str, int](int)
        for one in self.requests:
            asked[one.tenant] += len(one.prompt_token_ids) + one.max_tokens
        equal = sum(self.served.values()) / len(asked)
        shares = np.array([min(self.served.get(name, 0.0) / min(size, equal), 1.0) for name, size in asked.items()])
        return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum()))

    @property
    def hit_rate(self) -> float:
        """Share of the looked-up tokens that the cache held."""
        return self.statistics.prefix_cache_hits / max(self.statistics.prefix_cache_queries, 1)


def simulate(
    device: Device,
    requests: Sequence[Request],
    config: SchedulerConfig,
    cache: CacheConfig,
    *,
    one_queue: bool = False,
) -> Outcome:
    """Run requests to their ends under a virtual clock; with ``one_queue`` as if they all belonged to one tenant."""
    scheduler = Scheduler(device.limits, config, cache, max_queued_requests=len(requests))
    arrivals, flying = deque(requests), deque[tuple[float, StepPlan]]()
    first, end, served = dict[str, float](), dict[str, float](), defaultdict[str, float](float)
    tenants = {one.sequence_id: one.tenant for one in requests}
    last_arrival = requests[-1].arrival_s
    now, steps, began = 0.0, 0, time.perf_counter()
    while arrivals or scheduler.has_work or flying:
        while arrivals and arrivals[0].arrival_s <= now:
            one = arrivals.popleft()
            scheduler.add(dataclasses.replace(one, tenant="") if one_queue else one)
        while len(flying) < device.depth and (plan := scheduler.plan()) is not None:
            flying.append((max(now, flying[-1][0] if flying else now) + device.time_s(plan), plan))
            steps += 1
        next_arrival = arrivals[0].arrival_s if arrivals else float("inf")
        if not flying or next_arrival < flying[0][0]:
            now = next_arrival
            continue
        now, plan = flying.popleft()
        tokens = np.full((len(plan.rows), 1), 7, np.int32)
        if now <= last_arrival:
            for row in plan.rows:
                served[tenants[row.sequence_id]] += row.num_tokens
        for update in scheduler.apply(StepResult(plan, tokens)):
            first.setdefault(update.sequence_id, now)
            if update.finish_reason is not None:
                end[update.sequence_id] = now
    assert len(end) == len(requests), "a request was lost"
    return Outcome(list(requests), first, end, scheduler.statistics(), time.perf_counter() - began, steps, dict(served))


# ── load ────────────────────────────────────────────────────────────────────────────────────────


def arrivals(rng: np.random.Generator, count: int, rate: float, *, burst: float = 1.0) -> np.ndarray:
    """Poisson arrivals in seconds; with ``burst``, turns of 20 seconds at this many times the rate alternate with slower ones."""
    gaps, now, times = rng.exponential(1.0, count), 0.0, []
    for gap in gaps:
        busy = burst > 1 and now % 40 < 20
        now += gap / (rate * (burst if busy else (2 - burst if burst > 1 else 1.0)))
        times.append(now)
    return np.asarray(times)


def request(index: int, at: float, prompt: list[int], output: int, **treated: object) -> Request:
    return Request(f"r{index}", prompt, max(output, 1), RowSampling(), arrival_s=at, **treated)  # type: ignore[arg-type]


def own(rng: np.random.Generator, size: int) -> list[int]:
    """A prompt like no other."""
    return rng.integers(10, 30_000, max(int(size), 1)).tolist()


def bursts(count: int, seed: int, load: float) -> list[Request]:
    """A tenth of the requests is interactive (priority 0), the rest a batch that can wait; load comes in bursts."""
    rng = np.random.default_rng(seed)
    found = []
    for index, at in enumerate(arrivals(rng, count, load, burst=1.6)):
        urgent = rng.random() < 0.1
        size, output = (100, 40) if urgent else (rng.integers(100, 400), rng.integers(32, 96))
        found.append(request(index, at, own(rng, size), int(output), priority=0 if urgent else 1))
    return found


def flood(count: int, seed: int, load: float) -> list[Request]:
    """A tenant sends as much as the device can do, four others a tenth of that each."""
    rng = np.random.default_rng(seed)
    names = rng.choice(["flood", "a", "b", "c", "d"], count, p=[10 / 14, 1 / 14, 1 / 14, 1 / 14, 1 / 14])
    return [
        request(index, at, own(rng, rng.integers(50, 250)), int(rng.integers(32, 96)), tenant=str(name))
        for index, (at, name) in enumerate(zip(arrivals(rng, count, load), names, strict=True))
    ]


def long_prompts(count: int, seed: int, load: float) -> list[Request]:
    """Every twentieth prompt has 4,000 to 8,000 tokens, the others 50 to 150."""
    rng = np.random.default_rng(seed)
    sizes = np.where(rng.random(count) < 0.05, rng.integers(4000, 8000, count), rng.integers(50, 150, count))
    return [
        request(index, at, own(rng, size), int(rng.integers(16, 64)))
        for index, (at, size) in enumerate(zip(arrivals(rng, count, load), sizes, strict=True))
    ]


def shared_prefixes(count: int, seed: int, load: float) -> list[Request]:
    """Conversations over 120 documents of 1,024 tokens, more than the cache holds."""
    rng = np.random.default_rng(seed)
    documents = [own(rng, 1024) for _ in range(120)]
    return [
        request(index, at, [*documents[rng.integers(120)], *own(rng, 30)], int(rng.integers(16, 48)))
        for index, at in enumerate(arrivals(rng, count, load, burst=1.6))
    ]


def _is(**wanted: object) -> Callable[[Request], bool]:
    return lambda one: all(getattr(one, name) == value for name, value in wanted.items())


_CACHE, _SMALL = CacheConfig(), CacheConfig(prefix_cache_capacity=300)
SCENARIOS = {
    "bursts": Scenario("Bursts: interactive beside a batch", bursts, {"interactive": _is(priority=0), "batch": _is(priority=1)}, {"fcfs": (SchedulerConfig(), _CACHE), "priority": (SchedulerConfig(policy="priority"), _CACHE)}, 12.0),
    "flood": Scenario("One tenant floods", flood, {"flood": _is(tenant="flood"), "others": lambda one: one.tenant != "flood"}, {"one queue": (SchedulerConfig(), _CACHE), "tenants": (SchedulerConfig(), _CACHE)}, 24.0),
    "long": Scenario("Long prompts among short ones", long_prompts, {"short": lambda one: len(one.prompt_token_ids) < 1000, "long": lambda one: len(one.prompt_token_ids) > 1000}, {"no limit": (SchedulerConfig(), _CACHE), "threshold 128": (SchedulerConfig(long_prefill_token_threshold=128), _CACHE)}, 5.0),
    "cache": Scenario("Shared documents, a cache too small", shared_prefixes, {"all": lambda one: True}, {"fcfs": (SchedulerConfig(), _SMALL), "cache-aware": (SchedulerConfig(cache_aware=True), _SMALL)}, 5.0),
}  # fmt: skip


def compare(scenario: Scenario, device: Device, count: int, seed: int, load: float) -> dict[str, Outcome]:
    """Run a scenario under each of its policies."""
    requests = scenario.requests(count, seed, load)
    outcomes = {}
    for name, (config, cache) in scenario.policies.items():
        outcomes[name] = simulate(device, requests, config, cache, one_queue=name == "one queue")
    return outcomes


# ── what is shown ───────────────────────────────────────────────────────────────────────────────


def figures(scenario: Scenario, outcomes: dict[str, Outcome]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for policy, outcome in outcomes.items():
        waits = {
            f"TTFT p{share} {name}": round(outcome.percentile(group, share), 3)
            for name, group in scenario.groups.items()
            for share in (50, 99)
        }
        rows.append({
            "policy": policy, **waits, "fairness": round(outcome.fairness, 3), "hit rate": round(outcome.hit_rate, 3),
            "preemptions": outcome.statistics.preemptions, "end": round(max(outcome.end_s.values()), 1),
        })  # fmt: skip
    return rows


def draw(found: dict[str, dict[str, Outcome]], path: Path) -> None:
    """Draw a panel for each scenario: how many requests of each group had their first token by when."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "asurge"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(11, 7.5))
    for panel, (name, outcomes) in zip(panels.flat, found.items(), strict=True):
        scenario = SCENARIOS[name]
        for style, (policy, outcome) in zip(("--", "-"), outcomes.items(), strict=True):
            for color, (group, belongs) in enumerate(scenario.groups.items()):
                waits = sorted(outcome.first_token_s[one.sequence_id] - one.arrival_s for one in outcome.requests if belongs(one))  # fmt: skip
                panel.plot(np.maximum(waits, 1e-3), np.linspace(0, 1, len(waits)), style, color=f"C{color}", label=f"{group}, {policy}")  # fmt: skip
        panel.set(title=scenario.title, xscale="log", xlabel="seconds to the first token", ylabel="share of requests")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--load", type=float, default=1.0, help="times the load of each scenario")
    parser.add_argument("--plot", type=Path, help="write a picture here (.svg)")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(arguments)
    found: dict[str, dict[str, Outcome]] = {}
    told: dict[str, list[dict[str, object]]] = {}
    console = Console(width=120)
    for name in options.scenarios.split(","):
        scenario = SCENARIOS[name]
        load = options.load * scenario.load
        found[name] = compare(scenario, DEVICES[options.device], options.requests, options.seed, load)
        told[name] = figures(scenario, found[name])
        table = Table(*told[name][0], title=f"{scenario.title}: {options.requests} requests, {load:g} a second")
        for row in told[name]:
            table.add_row(*(str(value) for value in row.values()))
        console.print(table)
        hosts = ", ".join(f"{one.host_s:.1f} s for {one.steps} steps" for one in found[name].values())
        console.print(f"simulated in {hosts}")
    if options.plot:
        draw(found, options.plot)
    if options.json:
        options.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
