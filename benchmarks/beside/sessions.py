"""Engines that keep running between measurements, each in processes of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from asurge.bench.http_client import HttpClient
from asurge.bench.metrics import summarize
from asurge.bench.workloads import Workload, named_workload
from benchmarks.beside.limited import measure_limited, shortened
from benchmarks.beside.processes import launched, members, running
from benchmarks.peers import (  # fmt: skip
    JOBS,
    MAX_MODEL_LEN,
    MAX_NUM_SEQS,
    Script,
    Server,
    connected,
    foreign_environment,
    load_of,
    prompted,
)

ROOT = Path(__file__).parents[2]
_START_LIMIT_S, _GRACE_S, _APP_ALONE_S = 600.0, 120.0, 4.0


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """Placement of an engine's processes; by default wherever the kernel puts them."""

    cpus: tuple[int, ...] = ()
    cgroup: Path | None = None

    def command(self, command: Sequence[str]) -> list[str]:
        """Add the placement to a command."""
        return launched(command, cpus=self.cpus, cgroup=self.cgroup)


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """A measurement to be taken, with its time limit."""

    workload: Workload
    vocab_size: int
    seed: int
    limit_s: float
    app: bool = False
    app_alone_s: float = 0.0

    def warm_up(self) -> Order:
        """The one to send before, which is not measured, and beside which an application is watched alone."""
        alone_s = _APP_ALONE_S if self.app else 0.0
        return dataclasses.replace(
            self, workload=shortened(self.workload), seed=self.seed + 500, app=False, app_alone_s=alone_s
        )


class Session(Protocol):
    """An engine that is there."""

    def processes(self) -> list[int]:
        """Its processes."""

    def measure(self, order: Order) -> dict[str, Any]:
        """``metrics``, or None if no token came in time, and whatever else the engine tells."""


class Engine(Protocol):
    """An engine that can be started. ``name`` is for the table, ``hosts_app`` says that an application can share its event loop."""

    @property
    def name(self) -> str: ...

    @property
    def hosts_app(self) -> bool: ...

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""

    def started(self, placement: Placement) -> AbstractContextManager[Session]:
        """The engine, ended with the block."""


class Dialogue:
    """A process that answers each line of JSON with another."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Any) -> None:
        self._name, self._process, self._log = name, process, log

    def processes(self) -> list[int]:
        """Its own and its children's."""
        return members(self._process.pid)

    def ask(self, orders: dict[str, Any], within_s: float) -> dict[str, Any]:
        """
        Raises:
            RuntimeError: the process ended, or did not answer in time.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(orders) + "\n")
            stdin.flush()
        except OSError as error:
            raise self._failed("ended") from error
        if not select.select([stdout], [], [], within_s)[0]:
            raise self._failed(f"did not answer within {within_s:.0f} s")
        line = stdout.readline()
        if not line:
            raise self._failed("ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failed(self, what: str) -> RuntimeError:
        self._log.seek(0)
        words = self._log.read().decode(errors="replace")[-1500:]
        return RuntimeError(f"{self._name} {what}; its last words:\n{words}")


@contextmanager
def dialogue(name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[Dialogue]:
    """Start one; it ends with the block."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with tempfile.TemporaryFile() as log, running(command, stderr=log, cwd=ROOT, env=environment, **pipes) as process:
        yield Dialogue(name, process, log)


@dataclasses.dataclass(frozen=True, slots=True)
class Asurge:
    """This engine, in a process of its own, asked through its Python interface."""

    name: str
    model: str
    settings: dict[str, Any]
    hosts_app: bool = True

    def missing(self) -> str | None:
        return None

    @contextmanager
    def started(self, placement: Placement) -> Iterator[AsurgeSession]:
        command = placement.command([sys.executable, "-m", "benchmarks.beside.asurge_job"])
        with dialogue(self.name, command) as talk:
            talk.ask({"model": self.model, "settings": self.settings, "began_s": time.time()}, _START_LIMIT_S)
            yield AsurgeSession(talk)


class _DialogueSession:
    """An engine in a process that is talked with."""

    def __init__(self, talk: Dialogue) -> None:
        self._talk = talk

    def processes(self) -> list[int]:
        return self._talk.processes()


class AsurgeSession(_DialogueSession):
    """`benchmarks.beside.asurge_job`."""

    def measure(self, order: Order) -> dict[str, Any]:
        orders = {
            "workload": dataclasses.asdict(order.workload),
            "seed": order.seed,
            "limit_s": order.limit_s,
            "app": order.app,
            "app_alone_s": order.app_alone_s,
        }
        return self._talk.ask(orders, order.limit_s + _GRACE_S)


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """An engine that a file of `peer_jobs` drives; ``orders`` are added to what it is told at its start."""

    script: Script
    orders: dict[str, Any]
    hosts_app: bool = False

    @property
    def name(self) -> str:
        return self.script.name

    def missing(self) -> str | None:
        return self.script.missing()

    @contextmanager
    def started(self, placement: Placement) -> Iterator[JobSession]:
        job = JOBS / f"{self.script.module.replace('_cpp', 'cpp')}_job.py"
        command = placement.command([self.script.python, str(job)])
        with dialogue(self.name, command, foreign_environment()) as talk:
            common = {"max_num_seqs": MAX_NUM_SEQS, "max_model_len": MAX_MODEL_LEN, "began_s": time.time()}
            talk.ask({**common, **self.orders, "workloads": []}, _START_LIMIT_S)
            yield JobSession(talk)


class JobSession(_DialogueSession):
    """`benchmarks.peer_jobs.protocol`."""

    def measure(self, order: Order) -> dict[str, Any]:
        workload = {**prompted(order.workload, order.vocab_size, order.seed), "limit_s": order.limit_s}
        found = self._talk.ask({"workloads": [workload]}, order.limit_s + _GRACE_S)
        load = load_of(found["workloads"][order.workload.name])
        load.records[:] = [record for record in load.records if record.deliveries]
        metrics = dataclasses.asdict(summarize(load, order.workload.output_len)) if load.records else None
        return {"metrics": metrics, "peak_resident_bytes": found["peak_resident_bytes"]}


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """An engine behind OpenAI's completions."""

    server: Server
    model: str
    hosts_app: bool = False

    @property
    def name(self) -> str:
        return self.server.name

    def missing(self) -> str | None:
        return self.server.missing()

    @contextmanager
    def started(self, placement: Placement) -> Iterator[ServedSession]:
        command = shlex.join(placement.command(shlex.split(self.server.command)))
        placed = dataclasses.replace(self.server, command=command)
        with placed.started(self.model) as (url, process):
            client = asyncio.run(connected(url, process))
            yield ServedSession(url, client.model, process)


class ServedSession:
    """A server and, in this process, its client."""

    def __init__(self, url: str, model: str | None, process: subprocess.Popen[str]) -> None:
        self._url, self._model, self._process = url, model, process

    def processes(self) -> list[int]:
        return members(self._process.pid)

    def measure(self, order: Order) -> dict[str, Any]:
        return asyncio.run(self._measured(order))

    async def _measured(self, order: Order) -> dict[str, Any]:
        async with HttpClient(self._url, self._model) as client:
            return await measure_limited(
                client, order.workload, vocab_size=order.vocab_size, seed=order.seed, limit_s=order.limit_s
            )


def asurge_engines(model: str, common: dict[str, Any], groups: dict[str, dict[str, Any]]) -> list[Engine]:
    """Make an engine for each group of settings."""
    return [Asurge(f"asurge {name}".strip(), model, {**common, **settings}) for name, settings in groups.items()]


def llamacpp_engine(python: str, gguf: str, workloads: Sequence[str], threads: int | None) -> Engine:
    """llama.cpp, with a context that is large enough for these workloads."""
    known = [named_workload(name) for name in workloads]
    context_len = max(workload.most_open * workload.total_len for workload in known)
    name = "llama.cpp" if threads is None else f"llama.cpp, {threads} threads"
    script = Script(name, python, "llama_cpp", "llama-cpp-python")
    orders = {"model": gguf, "context_len": -(-context_len // 256) * 256, "threads": threads}
    return Job(script, orders)


def served_asurge(model: str, settings: Sequence[str], name: str = "asurge served") -> Engine:
    """`asurge serve`."""
    options = ["--set", *settings] if settings else []
    command = [sys.executable, "-m", "asurge.cli.main", "serve", "{model}", "--port", "{port}", "--no-access-log"]
    return Served(Server(name, shlex.join([*command, *options])), model)


def served_vllm(python: str, model: str) -> Engine:
    """vLLM's server, with the settings of `benchmarks.peers`."""
    environment = ["env", "-u", "PYTHONPATH", "-u", "VIRTUAL_ENV", "VLLM_CPU_KVCACHE_SPACE=1", "VLLM_NO_USAGE_STATS=1"]
    command = (
        f"{shlex.join([*environment, python])} -m vllm.entrypoints.openai.api_server --model {{model}} --port {{port}}"
    )
    options = f"--dtype bfloat16 --max-model-len {MAX_MODEL_LEN} --max-num-seqs {MAX_NUM_SEQS}"
    return Served(Server("vLLM served", f"{command} {options}"), model)
