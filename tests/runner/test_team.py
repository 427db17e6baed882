"""The kernels' threads as engines share them, from the setting to the threads that there are."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Collection
from itertools import count
from pathlib import Path

import pytest

from asurge import Engine
from asurge.cli.main import main
from asurge.errors import ConfigError, ModelLoadError
from asurge.observe import EngineMetrics
from asurge.processors import ProcessorProbe, ThreadBudget
from asurge.runner.team import KernelThreads, Team
from tests.checkpoints import write_tiny
from tests.conftest import TINY
from tests.control_groups import control_group
from tests.kernels import SIZES, needs_kernels
from tests.server.clients import free_port

pytestmark = needs_kernels

needs_two = pytest.mark.skipif(ProcessorProbe().look().count < 2, reason="there is one processor")
SMALL = {**TINY, "max_num_seqs": 2, "page_size": 32, "dtype": "bfloat16", "kernels": "native"}


def budget(threads: int) -> ThreadBudget:
    return ThreadBudget(threads, probe=ProcessorProbe(Path("/nowhere"), lambda: range(64)), environment={})


class Pool:
    """The kernels' threads: notes what it is given."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.quotas: list[float | None] = []
        self.loops: list[set[int]] = []

    def set_threads(self, count: int) -> None:
        self.sizes.append(count)

    def set_quota(self, processors: float | None) -> None:
        self.quotas.append(processors)

    def set_loop_threads(self, ids: Collection[int]) -> None:
        self.loops.append(set(ids))


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def team(pool: Pool) -> Team:
    """A team of 7 threads while no engine is there."""
    return Team(pool, lambda: 7)


def test_engines_share_one_thread_pool(pool: Pool, team: Team) -> None:
    """It is as large as the largest asks for, and goes back when that ends."""
    two = KernelThreads(budget(2), "auto", team=team)
    four = KernelThreads(budget(4), "native", team=team)
    one = KernelThreads(budget(1), "auto", team=team)
    assert (two.count, four.count, one.count) == (4, 4, 4)
    four.leave()
    four.leave()
    assert (two.count, one.count) == (2, 2)
    two.leave()
    assert one.count == 1
    one.leave()
    assert pool.sizes == [2, 4, 2, 1, 7]


def test_an_engine_without_kernels_does_not_change_the_pool(pool: Pool, team: Team) -> None:
    threads = KernelThreads(budget(3), "xla", team=team)
    threads.yield_to(9)
    threads.refresh()
    assert threads.count == 0
    threads.leave()
    assert (pool.sizes, pool.quotas, pool.loops) == ([], [], [])


def test_the_pool_yields_to_the_event_loops_of_engines(pool: Pool, team: Team) -> None:
    """Two engines may share a loop, which is known from when they serve to when the last of them ends."""
    one, other, third = (KernelThreads(budget(2), "auto", team=team) for _ in range(3))
    for threads, loop in ((one, 11), (other, 11), (third, 12)):
        threads.yield_to(loop)
    one.leave()
    third.leave()
    other.leave()
    assert pool.loops == [{11}, {11, 12}, {11}, set()]


def test_the_pool_follows_the_number_of_processors(pool: Pool, team: Team) -> None:
    now_s, visible = 0.0, 4

    def follows(asked: int | None) -> ThreadBudget:
        probe = ProcessorProbe(Path("/nowhere"), lambda: range(visible))
        return ThreadBudget(asked, probe=probe, environment={}, clock=lambda: now_s)

    threads = KernelThreads(follows(None), "auto", team=team)
    visible = 2
    threads.refresh()
    assert threads.count == 4
    now_s = 2.0
    threads.refresh()
    assert threads.count == 2
    busy = KernelThreads(follows(1), "auto", team=team)
    visible, now_s = 1, 4.0
    busy.refresh()  # the other has nothing to do, and does not look itself
    assert threads.count == 1
    assert pool.sizes == [4, 2, 1]


def test_the_pool_follows_the_quota(tmp_path: Path, pool: Pool, team: Team) -> None:
    """Also where it changes by less than a processor; one that grants every processor is none."""
    group = tmp_path / "sys/fs/cgroup"
    for file, text in {
        tmp_path / "proc/self/cgroup": "0::/\n",
        tmp_path / "proc/self/mountinfo": "1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
        group / "cpu.max": "100000 100000\n",
    }.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    limited = ThreadBudget(
        None, probe=ProcessorProbe(tmp_path, lambda: range(4)), environment={}, clock=count(step=2.0).__next__
    )
    threads = KernelThreads(limited, "auto", team=team)
    for text in ("150000 100000", "150000 100000", "400000 100000", "50000 100000"):
        (group / "cpu.max").write_text(text)
        threads.refresh()
    assert pool.quotas == [1.0, 1.5, None, 0.5]
    threads.leave()
    assert pool.quotas[4:] == [None]


def test_an_engine_that_was_dropped_frees_its_threads(team: Team) -> None:
    KernelThreads(budget(4), "auto", team=team)
    gc.collect()
    last = KernelThreads(budget(2), "auto", team=team)
    assert last.count == 2


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest model that the kernels serve."""
    return write_tiny(tmp_path_factory.mktemp("small"), **SIZES)


@pytest.fixture
def process_pool(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> Pool:
    """What the kernels' threads of this process are given, as if no other engine were there."""
    monkeypatch.setattr("asurge.runner.team._TEAM", Team(pool, lambda: ProcessorProbe().look().count))
    return pool


async def test_an_engine_reports_its_threads(
    small_folder: Path, process_pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asurge")
    async with Engine(str(small_folder), kernel_threads=1, **SMALL) as engine:
        assert engine.get_metrics_summary()["kernel_threads"] == 1
        metrics = EngineMetrics(engine.max_model_len)
        metrics.watch("small", engine)
        shown = metrics.exposition().decode()
        assert 'asurge_kernel_threads{engine="0",model_name="small"} 1.0' in shown or 'asurge_kernel_threads{model_name="small",engine="0"} 1.0' in shown  # fmt: skip
        assert "vllm:kernel_" not in shown
        for name in ("threads_active", "threads_put_aside_total", "wait_seconds_total", "quota_sleep_seconds_total"):
            assert f"\nasurge_kernel_{name}{{" in shown
        assert process_pool.sizes[-1] == 1
        assert process_pool.loops == [{threading.get_native_id()}]
    assert process_pool.loops[-1] == set()
    assert process_pool.sizes[-1] != 1 or ProcessorProbe().look().count == 1
    told = [record.getMessage() for record in caplog.records if "kernel threads" in record.getMessage()]
    assert told == ["kernel threads: 1 (kernel_threads=1)"]


async def test_a_start_that_fails_gives_its_threads_back(tmp_path: Path, process_pool: Pool) -> None:
    with pytest.raises(ModelLoadError):
        await Engine(str(tmp_path), kernel_threads=1, **SMALL).initiate()
    assert process_pool.sizes == [1, ProcessorProbe().look().count]


@pytest.mark.parametrize("value", [0, -2, 1.5, "2", True])
def test_invalid_kernel_threads_are_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"kernel_threads=.* must be an integer of at least 1"):
        Engine("demo", kernel_threads=value)


async def test_an_invalid_environment_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASURGE_THREADS", "all")
    with pytest.raises(ConfigError, match="ASURGE_THREADS='all'"):
        await Engine("demo").initiate()


@pytest.mark.parametrize(
    ("arguments", "variable", "message"),
    [
        ([], "all", "ASURGE_THREADS='all'"),
        (["--threads", "0"], "", "kernel_threads=0"),
        (["--set", "kernel_threads=many"], "1", "kernel_threads='many'"),
    ],
)
def test_commands_check_the_environment_variable_first(
    arguments: list[str],
    variable: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ASURGE_THREADS", variable)
    assert main(["generate", "x", "--model", "./nowhere", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_thread_limits_of_the_environment_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PJRT_NPROC", "5")
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    assert main(["generate", "x", "--model", "./nowhere", "--threads", "1"]) == 2
    assert (os.environ["PJRT_NPROC"], os.environ.pop("RAYON_NUM_THREADS")) == ("5", "1")


def threads_of(process: int) -> Counter[str]:
    """Count a process's threads by name."""
    names: Counter[str] = Counter()
    for task in Path(f"/proc/{process}/task").iterdir():
        try:
            names[(task / "comm").read_text().strip()] += 1
        except OSError:  # it has just ended
            continue
    return names


def served(folder: Path, *arguments: str, **environment: str) -> Counter[str]:
    """The threads of a server that has answered; of a process of its own."""
    command = [sys.executable, "-m", "asurge.cli.main", "serve", f"small={folder}", "--port", str(port := free_port())]
    settings = ["--set", *(f"{name}={value}" for name, value in SMALL.items() if name != "silent_mode")]
    clean = {name: value for name, value in os.environ.items() if name not in ("PJRT_NPROC", "RAYON_NUM_THREADS")}
    process = subprocess.Popen([*command, *arguments, *settings], stderr=subprocess.PIPE, env={**clean, **environment})
    try:
        ask = [sys.executable, "-c", ASK, str(port), str(process.pid)]
        done = subprocess.run(ask, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return threads_of(process.pid)
    finally:
        process.kill()
        process.communicate()


ASK = """
import json, os, sys, time, urllib.error, urllib.request
port, process = sys.argv[1:]
body = json.dumps({"model": "small", "prompt": "word " * 10_000, "max_tokens": 4}).encode()
ask = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"})
for _ in range(900):
    try:
        print(urllib.request.urlopen(ask).read())
        break
    except urllib.error.URLError as error:
        os.kill(int(process), 0)
        if isinstance(error, urllib.error.HTTPError) and error.code != 503:
            raise
    time.sleep(0.1)
else:
    sys.exit("it does not answer")
"""


@needs_two
@pytest.mark.parametrize("how", ["option", "variable"])
def test_one_thread_is_one_thread_of_each_pool(small_folder: Path, how: str) -> None:
    arguments, environment = (["--threads", "1"], {}) if how == "option" else ([], {"ASURGE_THREADS": "1"})
    one = served(small_folder, *arguments, **environment)
    assert one["tf_XLAEigen"] == 1
    assert not [name for name in one if name.startswith("asurge-")]
    if how == "option":
        two = served(small_folder, "--threads", "2")
        assert two["tf_XLAEigen"] == 2
        assert two["asurge-1"] == 1
        assert two.total() >= one.total() + 3  # and one of the tokenizer


LIVING = """
import asyncio, os, sys
from asurge import Engine, SamplingParams, processors
from tests.runner.test_team import SMALL

processors.LOOK_S = 0.0

async def main(folder, become, again):
    async with Engine(folder, **SMALL) as engine:
        seen = []
        async def look():
            output = await engine.generate("hello", SamplingParams(max_tokens=8, temperature=0.0), use_tqdm=False)
            seen.append((engine.get_metrics_summary()["kernel_threads"], output[0].get_text()))
        await look()
        for change in (become, again):
            exec(change)
            await look()
        print([threads for threads, _ in seen], len({text for _, text in seen}))

asyncio.run(main(*sys.argv[1:]))
"""


def threads_of_engine(folder: Path, become: str, again: str) -> str:
    """Count an engine's threads before and after its process changes, and the texts it wrote."""
    command = [sys.executable, "-c", LIVING, str(folder), become, again]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_two
def test_an_engine_follows_its_affinity(small_folder: Path) -> None:
    one, all_ = {min(os.sched_getaffinity(0))}, os.sched_getaffinity(0)
    become, again = (f"os.sched_setaffinity(os.getpid(), {allowed})" for allowed in (one, all_))
    before = ProcessorProbe().look().count
    assert threads_of_engine(small_folder, become, again) == f"[{before}, 1, {before}] 1"


@needs_two
def test_an_engine_follows_its_quota(small_folder: Path) -> None:
    """The quota changes while the engine runs, as where Kubernetes resizes a container."""
    before = ProcessorProbe().look().count
    with control_group() as (group, quota):
        quota.write_text("100000")
        join = f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
        raised = f"open({str(quota)!r}, 'w').write('{1000 * 100_000}')"
        assert threads_of_engine(small_folder, join, raised) == f"[{before}, 1, {before}] 1"


NICE = """
import asyncio, os, sys
from asurge import Engine

def niceness():
    names = {int(task): open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")}
    return {name: os.getpriority(os.PRIO_PROCESS, task) for task, name in names.items()}

async def main():
    async with Engine(sys.argv[1], kernel_threads=2, kernel_nice=7, max_model_len=64, silent_mode=True) as engine:
        for _ in range(100):  # it is as nice as it is told from when it first runs on
            await engine.generate("a")
            found = niceness()
            if found.get("asurge-1"):
                break
        assert found.pop("asurge-1") == 7 and set(found.values()) == {0}, found

asyncio.run(main())
"""


@needs_two
def test_kernel_threads_have_the_niceness_of_the_setting(small_folder: Path) -> None:
    run = subprocess.run([sys.executable, "-c", NICE, str(small_folder)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("value", [-1, 20, True, "low"])
def test_an_invalid_niceness_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="kernel_nice="):
        Engine("demo", kernel_nice=value)
