"""Parts of the benchmark of engines beside other work: processes that surely end, quotas, the kernel scheduler's view, sessions."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from asurge import Engine
from asurge.bench.records import Record
from asurge.bench.workloads import Workload, named_workload
from asurge.errors import BenchmarkError
from benchmarks.beside import asurge_job, quota, scheduler_view, sessions
from benchmarks.beside.limited import measure_limited, shortened
from benchmarks.beside.processes import end, launched, members, running
from benchmarks.peer_jobs import protocol
from benchmarks.peers import Server

SECONDS = 20.0
SLEEPER = [sys.executable, "-ISc", "import signal; print('there', flush=True); signal.pause()"]


def gone(process: int) -> bool:
    """Whether a process ends within some seconds."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], SECONDS)[0])
    finally:
        os.close(handle)


def test_a_process_ends_with_its_block_also_on_an_error() -> None:
    def fail() -> None:
        with running(launched(SLEEPER), stdout=subprocess.PIPE) as process:
            started.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
            raise KeyError

    started: list[subprocess.Popen[str]] = []
    with pytest.raises(KeyError):
        fail()
    assert started[0].returncode is not None
    assert members(started[0].pid) == []


def test_a_group_ends_with_its_leader_whatever_it_ignores() -> None:
    stubborn = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('there', flush=True); signal.pause()"
    )
    family = f"import subprocess, sys; subprocess.run([sys.executable, '-ISc', {stubborn!r}])"
    process = subprocess.Popen([sys.executable, "-ISc", family], process_group=0, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    both = members(process.pid)
    assert len(both) == 2
    end(process, grace_s=SECONDS)  # the leader ends at once; its child must be killed
    assert all(gone(member) for member in both)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_neighbour_outlives_the_benchmark(number: signal.Signals) -> None:
    program = """
import signal
from benchmarks.beside.neighbours import known_neighbours
with known_neighbours()["niced"].there() as spinners:
    print(*spinners, flush=True)
    signal.pause()
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    assert parent.stdout is not None
    with parent.stdout:
        spinners = [int(word) for word in parent.stdout.readline().split()]
    assert spinners
    parent.send_signal(number)
    parent.wait(SECONDS)
    assert all(gone(spinner) for spinner in spinners)


def test_processes_are_placed() -> None:
    cpu = max(os.sched_getaffinity(0))
    show = "import os; print(os.nice(0) - int(os.environ['BEFORE']), *os.sched_getaffinity(0), os.getsid(0) == os.getpid())"
    command = launched([sys.executable, "-ISc", show], nice=3, cpus=[cpu])
    environment = {**os.environ, "BEFORE": str(os.nice(0))}
    for apart in (False, True):
        with running(command, apart=apart, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline().split() == ["3", str(cpu), str(apart)]


def test_a_launcher_whose_parent_has_ended_starts_nothing() -> None:
    command = launched([sys.executable, "-ISc", "print('started')"])
    command[3] = json.dumps({**json.loads(command[3]), "parent": 1})
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


V1 = "30 25 0:26 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V2 = "31 25 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n"
DISK = "24 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
INSIDE = "30 25 0:26 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n"


@pytest.mark.parametrize(
    ("mounts", "membership", "found"),
    [
        (DISK + V1 + V2, "3:cpuset:/\n1:cpu,cpuacct:/user/1\n0::/\n", (Path("/sys/fs/cgroup/cpu/user/1"), 1)),
        (V2, "0::/user.slice/a:b\n", (Path("/sys/fs/cgroup/unified/user.slice/a:b"), 2)),
        (INSIDE, "1:cpu:/docker/abc/job\n", (Path("/sys/fs/cgroup/cpu/job"), 1)),
        (V1.replace("cpu,cpuacct", "cpuset"), "2:cpuset:/\n", None),
        (DISK, "", None),
    ],
)
def test_the_controller_of_processor_time(mounts: str, membership: str, found: tuple[Path, int] | None) -> None:
    assert quota.cpu_controller(mounts, membership) == found


@pytest.mark.parametrize("version", [1, 2])
def test_a_quota_is_written_and_its_throttling_read(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "_controller", lambda: (tmp_path, version))
    monkeypatch.setattr(quota, "_remove", lambda group: None)  # these are ordinary files, which hold a folder
    texts = {
        1: "nr_periods 9\nnr_throttled 4\nthrottled_time 2500000000\n",
        2: "usage_usec 7\nnr_periods 9\nnr_throttled 4\nthrottled_usec 2500000\n",
    }
    with quota.quota(1.5) as group:
        written = {path.name: path.read_text() for path in group.iterdir()}
        (group / "cpu.stat").write_text(texts[version])
        assert quota.throttled(group) == {"throttled_periods": 4.0, "throttled_s": 2.5}
    assert written == (
        {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"} if version == 1 else {"cpu.max": "150000 100000"}
    )


def test_where_no_group_can_be_made_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "_controller", lambda: (tmp_path / "nowhere", 1))
    with pytest.raises(quota.NoQuotaError, match=r"no group can be made in .*nowhere"), quota.quota(1.0):
        pass


STATUS = "Name:\tpython\nvoluntary_ctxt_switches:\t{}\nnonvoluntary_ctxt_switches:\t{}\n"


def write_thread(proc: Path, thread: int, schedstat: str, switches: tuple[int, int]) -> None:
    folder = proc / "7" / "task" / str(thread)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "schedstat").write_text(schedstat)
    (folder / "status").write_text(STATUS.format(*switches))


def test_the_view_is_the_sum_over_threads_of_what_changed(tmp_path: Path) -> None:
    write_thread(tmp_path, 7, "1000000000 500000000 10\n", (3, 4))
    write_thread(tmp_path, 8, "9000000000 0 1\n", (0, 0))
    before = scheduler_view.threads_of([7, 404], tmp_path)
    write_thread(tmp_path, 7, "3000000000 750000000 15\n", (5, 9))
    write_thread(tmp_path, 9, "1000000000 1000000000 2\n", (1, 1))  # a thread that has begun
    for file in (tmp_path / "7/task/8").iterdir():  # and one that is ending
        file.unlink()
    after = scheduler_view.threads_of([7, 404], tmp_path)
    assert scheduler_view.between(before, after) == scheduler_view.Share(3.0, 1.25, 7, 3, 6)


def test_own_threads_are_seen() -> None:
    found = scheduler_view.threads_of([os.getpid()])
    assert found[os.getpid()].cpu_s > 0


def test_busy_time_is_all_but_idle_and_waiting_for_disks() -> None:
    stat = "cpu  100 20 30 4000 5000 6 7 8 50 1\ncpu0 1 2 3 4 5 6 7 8 9 10\n"
    assert scheduler_view.busy_s(stat, 100) == pytest.approx(1.71)
    assert scheduler_view.machine_busy_s() > 0


ECHO = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"
WAIT = "import signal; signal.pause()"
BREAK = "import sys; sys.stdin.readline(); sys.exit('no such model')"


def test_a_dialogue_answers_line_by_line() -> None:
    with sessions.dialogue("x", [sys.executable, "-ISc", ECHO]) as talk:
        assert [talk.ask({"a": at}, SECONDS) for at in range(3)] == [{"a": 0}, {"a": 1}, {"a": 2}]
        assert len(talk.processes()) == 1
        (process,) = talk.processes()
    assert gone(process)


@pytest.mark.parametrize(
    ("program", "within_s", "message"),
    [(BREAK, SECONDS, "x ended; its last words:\nno such model"), (WAIT, 0.0, "x did not answer within 0 s")],
)
def test_a_dialogue_that_fails_says_why(program: str, within_s: float, message: str) -> None:
    with sessions.dialogue("x", [sys.executable, "-ISc", program]) as talk, pytest.raises(RuntimeError, match=message):
        talk.ask({}, within_s)


def test_contexts_hold_the_largest_workload() -> None:
    engine = sessions.llamacpp_engine(sys.executable, "x.gguf", ["w1", "w2"], None)
    assert isinstance(engine, sessions.Job)
    assert engine.orders["context_len"] == 64 * 256
    assert "no llama_cpp: pip install llama-cpp-python" in str(engine.missing())
    assert (sessions.JOBS / "llamacpp_job.py").is_file()


class Endless:
    """A client whose requests get a token each time the clock is looked at, or none."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    async def complete(self, prompt: Any, output_len: int, record: Record, /) -> None:
        for _ in range(self._tokens):
            record.deliver(anyio.current_time(), 1)
        await anyio.sleep_forever()


async def test_what_came_until_the_limit_counts() -> None:
    workload = Workload(name="x", requests=2, input_len=4, output_len=9, rounds=3)
    cut = await measure_limited(Endless(3), workload, vocab_size=9, seed=0, limit_s=0.01)
    assert (cut["metrics"]["completed"], cut["metrics"]["short"]) == (2, 2)  # rounds that came too late have no token
    assert cut["metrics"]["output_tokens"] == 6
    none = await measure_limited(Endless(0), workload, vocab_size=9, seed=0, limit_s=0.01)
    assert none["metrics"] is None
    assert "without a token" in none["failure"]


def test_a_warm_up_is_short_and_of_the_same_kind() -> None:
    short = shortened(named_workload("w5"))
    assert (short.requests, short.rounds, short.input_len, short.output_len) == (2, 1, 128, 8)
    order = sessions.Order(named_workload("w5"), 100, 7, 5.0, app=True)
    assert (order.warm_up().app, order.warm_up().app_alone_s > 0, order.warm_up().seed) == (False, True, 507)


async def test_the_asurge_job_measures_beside_an_application() -> None:
    workload = dataclasses.asdict(Workload(name="x", requests=2, input_len=8, output_len=8))
    async with Engine("demo", silent_mode=True) as engine:
        orders = {"workload": workload, "seed": 1, "limit_s": 60.0, "app": True, "app_alone_s": 0.02}
        found = await asurge_job._measured(engine, orders, vocab_size=400)
    assert found["metrics"]["output_tokens"] == 16
    assert found["app"]["turns_per_s"] > 0
    assert 0 < found["app_alone"]["busy_share"] <= 1
    assert found["compilations"] == 0
    json.dumps(found)


class Ticking:
    """A stepped engine on a clock of its own: a second a step."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.open: list[str] = []
        self.dropped: list[str] = []

    def perf_counter(self) -> float:
        return self.now_s

    def add(self, name: str, prompt: list[int], output_len: int) -> None:
        self.open.append(name)

    def step(self) -> list[tuple[str, int, bool]]:
        self.now_s += 1.0
        return [(name, 1, False) for name in self.open]

    def drop(self, name: str) -> None:
        self.open.remove(name)
        self.dropped.append(name)


def test_a_stepped_engine_is_cut_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Ticking()
    monkeypatch.setattr(protocol, "time", engine)
    work = {"name": "x", "output_len": 99, "at_once": 2, "rounds": [[[1]] * 3] * 2, "limit_s": 4.0}
    cut = protocol._run(engine, work, 64)
    assert [len(record["deliveries"]) for record in cut["records"]] == [4, 4]
    assert {record["ended_s"] for record in cut["records"]} == {4.0}
    assert sorted(engine.dropped) == ["x-0", "x-1"]
    assert engine.open == []


class MadeLlama(types.ModuleType):
    """Bindings that sample the token after the last one, and note every batch."""

    def __init__(self) -> None:
        super().__init__("llama_cpp")
        self.batches: list[list[tuple[int, int, int]]] = []
        self.removed: list[int] = []
        self._sampled: dict[int, Any] = {}

    def llama_get_memory(self, context: Any) -> None:
        return None

    def llama_memory_seq_rm(self, memory: None, slot: int, begin: int, end: int) -> None:
        self.removed.append(slot)

    def llama_batch_init(self, size: int, embedding: int, sequences: int) -> types.SimpleNamespace:
        columns = {name: [0] * size for name in ("token", "pos", "n_seq_id", "logits")}
        return types.SimpleNamespace(n_tokens=0, seq_id=[[0] for _ in range(size)], **columns)

    def llama_decode(self, context: Any, batch: types.SimpleNamespace) -> int:
        rows = range(batch.n_tokens)
        self.batches.append([(batch.seq_id[at][0], batch.pos[at], batch.token[at]) for at in rows])
        self._sampled = {at: batch.token[at] + 1 for at in rows if batch.logits[at]}
        return 0

    def llama_get_logits_ith(self, context: Any, at: int) -> Any:
        self._logits = np.zeros(2000, np.float32)
        self._logits[self._sampled[at]] = 1.0
        return np.ctypeslib.as_ctypes(self._logits)


def test_llamacpp_is_batched_decoding_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made = MadeLlama()
    monkeypatch.setitem(sys.modules, "llama_cpp", made)
    monkeypatch.syspath_prepend(str(sessions.JOBS))
    job = importlib.import_module("llamacpp_job")
    monkeypatch.delitem(sys.modules, "llamacpp_job")
    engine = job.Stepped(None, 2000, 2)
    engine.add("short", [10, 11, 12], 3)
    assert engine.step() == [("short", 1, False)]
    engine.add("long", list(range(1000, 1600)), 2)
    news = [engine.step() for _ in range(3)]
    assert news == [[("short", 1, False)], [("short", 1, True), ("long", 1, False)], [("long", 1, True)]]
    assert [len(batch) for batch in made.batches] == [3, 512, 90, 1]
    assert [batch[0] for batch in made.batches] == [(1, 0, 10), (1, 3, 13), (1, 4, 14), (0, 600, 1600)]
    assert made.removed == [1, 0]
    engine.add("next", [5], 1)
    engine.drop("next")
    assert made.removed == [1, 0, 0]


def test_errors_of_a_server_end_its_processes() -> None:
    def fail() -> None:
        with server.started("S") as (url, process):
            assert url.startswith("http://127.0.0.1:")
            started.append(process)
            raise BenchmarkError("no answer")

    server = Server("x", f"{sys.executable} -ISc 'import signal; signal.pause()' {{port}} {{model}}")
    started: list[subprocess.Popen[str]] = []
    with pytest.raises(RuntimeError, match="x: no answer"):
        fail()
    assert gone(started[0].pid)
