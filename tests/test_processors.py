"""Number of processors: fake file systems for every way that control groups are mounted, and this machine's own."""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asurge import processors
from asurge.errors import ConfigError
from asurge.processors import ProcessorProbe, Processors, Quota, ThreadBudget, allowed
from tests.control_groups import control_group

V1 = "cgroup cgroup rw,cpu,cpuacct"
V2 = "cgroup2 cgroup2 rw"


@pytest.fixture(autouse=True)
def _warn_afresh() -> None:
    processors._warn_once.cache_clear()


@dataclasses.dataclass(frozen=True)
class Machine:
    """A file system with what the kernel tells a process."""

    root: Path

    def write(self, file: str, text: str | bytes) -> Path:
        path = self.root / file.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def belongs(self, *groups: str) -> None:
        """The process is in these, as in ``/proc/self/cgroup``."""
        self.write("/proc/self/cgroup", "".join(f"{group}\n" for group in groups))

    def mounts(self, *mounts: tuple[str, str, str]) -> None:
        """Mount a hierarchy, or a part of it."""
        lines = ["21 1 0:20 / / rw,relatime shared:1 - ext4 /dev/root rw\n", "not a mount\n"]
        lines += [f"30 21 0:26 {root} {at} rw,nosuid shared:4 master:1 - {how}\n" for root, at, how in mounts]
        self.write("/proc/self/mountinfo", "".join(lines))
        for _, at, _ in mounts:
            (self.root / at.lstrip("/").replace(r"\040", " ")).mkdir(parents=True, exist_ok=True)

    def limit(self, folder: str, time_us: int | str, period_us: int = 100_000) -> None:
        """Write a quota, in the version of control groups that the folder has."""
        if "cpu,cpuacct" in folder:
            self.write(f"{folder}/cpu.cfs_quota_us", f"{time_us}\n")
            self.write(f"{folder}/cpu.cfs_period_us", f"{period_us}\n")
        else:
            self.write(f"{folder}/cpu.max", f"{time_us} {period_us}\n")

    def probe(self, visible: int = 64) -> ProcessorProbe:
        return ProcessorProbe(self.root, lambda: range(visible))

    def look(self, visible: int = 64) -> Processors:
        return self.probe(visible).look()

    def budget(self, kernel_threads: int | None = None, visible: int = 64, **environment: str) -> ThreadBudget:
        return ThreadBudget(kernel_threads, probe=self.probe(visible), environment=environment)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def pod(machine: Machine) -> Machine:
    """Version 2, in a group of its own below one of others."""
    machine.belongs("0::/pods/mine")
    machine.mounts(("/", "/sys/fs/cgroup", V2))
    machine.limit("/sys/fs/cgroup/pods/mine", "max")
    return machine


def test_without_control_groups_affinity_counts(machine: Machine) -> None:
    assert machine.look(6) == Processors(6)
    assert machine.look(1).limit == "the process may run on 1 processor"


def test_control_groups_version_2(pod: Machine) -> None:
    assert (pod.look().count, pod.look().quota) == (64, None)
    pod.limit("/sys/fs/cgroup/pods/mine", 200_000)
    assert pod.look().quota == Quota(200_000, 100_000, "/sys/fs/cgroup/pods/mine/cpu.max")
    assert pod.look().count == 2
    assert pod.look(1).count == 1
    assert "may run on 1 " in pod.look(1).limit
    assert pod.look().limit == "/sys/fs/cgroup/pods/mine/cpu.max grants the time of 2 processors"


@pytest.mark.parametrize("file", ["/sys/fs/cgroup/pods/cpu.max", "/sys/fs/cgroup/cpu.max"])
def test_the_tightest_of_nested_quotas_counts(pod: Machine, file: str) -> None:
    pod.limit("/sys/fs/cgroup/pods/mine", 800_000)
    pod.write(file, "30000 10000\n")
    assert pod.look().quota == Quota(30_000, 10_000, file)
    pod.limit("/sys/fs/cgroup/pods/other", 100_000)  # of somebody else
    assert pod.look().count == 3


@pytest.mark.parametrize(
    ("time_us", "count", "most"),
    [(1_000, 1, 1), (50_000, 1, 1), (99_999, 1, 1), (100_000, 1, 1), (150_000, 1, 2), (399_999, 3, 4), (10**9, 64, 64)],
)
def test_fractions_of_a_processor_are_left_to_the_event_loop(pod: Machine, time_us: int, count: int, most: int) -> None:
    pod.limit("/sys/fs/cgroup/pods/mine", time_us)
    assert (pod.look().count, pod.look().most) == (count, most)


@pytest.mark.parametrize("at", ["/sys/fs/cgroup/cpu,cpuacct", "/odd place/cpu,cpuacct"])
def test_control_groups_version_1(machine: Machine, at: str) -> None:
    machine.belongs("9:name=systemd:/", "4:cpuset:/sets/a", "3:cpu,cpuacct:/docker/a/b")
    machine.mounts(("/", "/sys/fs/cgroup/cpuset", "cgroup cgroup rw,cpuset"), ("/", at.replace(" ", r"\040"), V1))
    machine.limit(f"{at}/docker/a/b", -1)
    assert machine.look() == Processors(64)
    machine.limit(f"{at}/docker/a", 75_000, 25_000)
    assert machine.look().quota == Quota(75_000, 25_000, f"{at}/docker/a/cpu.cfs_quota_us")
    machine.limit(f"{at}/docker/a/b", 200_000)
    assert machine.look().count == 2
    machine.limit(at, 100_000)
    assert machine.look().count == 1


def test_both_versions_of_control_groups_at_once(machine: Machine) -> None:
    """systemd's hybrid: processors are under version 1, and version 2 has no limits; or the other way round."""
    machine.belongs("3:cpu,cpuacct:/slice", "0::/slice/mine")
    machine.mounts(("/", "/sys/fs/cgroup/cpu,cpuacct", V1), ("/", "/sys/fs/cgroup/unified", V2))
    machine.limit("/sys/fs/cgroup/cpu,cpuacct/slice", 300_000)
    assert machine.look().count == 3
    machine.limit("/sys/fs/cgroup/unified/slice/mine", 200_000)
    assert machine.look().count == 2
    assert machine.look().unread == ()


@pytest.mark.parametrize(
    ("group", "root"),
    [
        ("/", "/"),  # a namespace of control groups
        ("/docker/mine", "/docker/mine"),  # none, and the runtime mounts the container's group only
        ("/docker/mine", "/"),  # none, and nothing says what is mounted
        ("/", "/.."),  # a namespace that began below what is mounted
        ("/../elsewhere", "/"),  # moved out of its namespace
        ("/docker/mine", "/docker/other"),
    ],
)
@pytest.mark.parametrize(("at", "how", "line"), [("/sys/fs/cgroup", V2, "0::"), ("/sys/fs/cgroup/cpu,cpuacct", V1, "2:cpu,cpuacct:")])  # fmt: skip
def test_containers_see_what_is_mounted(machine: Machine, group: str, root: str, at: str, how: str, line: str) -> None:
    machine.belongs(line + group)
    machine.mounts((root, at, how))
    machine.limit(at, 100_000)
    machine.limit(str(Path(at).parent / "elsewhere"), 1_000)  # which is not its own
    assert machine.look().quota is not None
    assert machine.look().count == 1
    assert machine.look().unread == ()


def test_a_group_of_the_container_below_what_is_mounted(machine: Machine) -> None:
    machine.belongs("2:cpu,cpuacct:/docker/mine/inner/most")
    machine.mounts(("/docker/mine", "/sys/fs/cgroup/cpu,cpuacct", V1), ("/docker/other", "/other/cpu,cpuacct", V1))
    machine.limit("/sys/fs/cgroup/cpu,cpuacct/inner/most", 400_000)
    machine.limit("/other/cpu,cpuacct", 100_000)
    assert machine.look().count == 4
    machine.limit("/sys/fs/cgroup/cpu,cpuacct/inner", 200_000)
    assert machine.look().count == 2


@given(st.lists(st.one_of(st.just("max"), st.tuples(st.integers(1000, 10**7), st.integers(1000, 10**6))), max_size=5), st.integers(1, 128))  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_nesting(tmp_path: Path, limits: list[tuple[int, int]], visible: int) -> None:
    """A team has at least one member, and asks for no more time than any group has, unless for that one."""
    machine = Machine(tmp_path)
    folders = ["/sys/fs/cgroup" + "/g" * depth for depth in range(len(limits) + 1)]
    machine.belongs("0::" + (folders[-1].removeprefix("/sys/fs/cgroup") or "/"))
    machine.mounts(("/", "/sys/fs/cgroup", V2))
    for folder, one in zip(folders[1:], limits, strict=True):
        machine.write(f"{folder}/cpu.max", "max 100000\n" if one == "max" else "{} {}\n".format(*one))
    found = machine.look(visible)
    assert 1 <= found.count <= found.most <= visible
    for one in limits:
        assert one == "max" or found.count * one[1] <= one[0] or found.count == 1
    widest = all(one == "max" or (found.count + 1) * one[1] <= one[0] for one in limits)
    assert found.count == visible or not widest
    assert found.most - found.count <= 1


@pytest.mark.parametrize(
    "text",
    ["", "\n", "many", "0 100000", "-5 100000", "100000 0", "100000", "1e5 100000", "1_0 10", "\xb2 1", "9" * 5000 + " 1", b"\xff\xfe\x00"],
)  # fmt: skip
def test_malformed_quotas_are_logged_and_no_limit(pod: Machine, text: str | bytes) -> None:
    pod.write("/sys/fs/cgroup/pods/cpu.max", text)
    pod.limit("/sys/fs/cgroup/pods/mine", 300_000)
    found = pod.look()
    assert found.count == 3
    assert [one.split(": ")[0] for one in found.unread] == ["/sys/fs/cgroup/pods/cpu.max"]


@given(st.binary(max_size=60), st.binary(max_size=200), st.binary(max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_that_is_written_there_fails(tmp_path: Path, own: bytes, mounts: bytes, limit: bytes) -> None:
    machine = Machine(tmp_path)
    machine.write("/proc/self/cgroup", b"0::/a\n" + own)
    machine.write("/proc/self/mountinfo", mounts + b"\n1 1 0:1 / /c rw - cgroup2 c rw\n")
    machine.write("/c/a/cpu.max", limit)
    assert machine.look(3).count in (1, 2, 3)


def test_unreadable_quotas_are_warned_of_once(pod: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """The superuser may read anything: a folder in a file's place cannot be read by anybody."""
    (pod.root / "sys/fs/cgroup/pods/cpu.max").mkdir()
    for _ in range(2):
        budget = pod.budget(visible=4)
        budget.report()
        assert budget.threads == 4
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "/sys/fs/cgroup/pods/cpu.max: Is a directory" in warning
    assert "kernel threads are 4 (the process may run on 4 processors)" in warning
    assert "kernel_threads" in warning


def test_an_unmounted_hierarchy_is_logged(machine: Machine) -> None:
    machine.belongs("0::/docker/mine")
    machine.mounts()
    assert machine.look().unread == ("control group /docker/mine: not mounted",)
    machine.belongs("0::/")
    assert machine.look().unread == ()
    machine.belongs(
        "0::/docker/mine", "1:cpu,cpuacct:/"
    )  # where processors are under version 1, nobody misses the other
    machine.mounts(("/", "/sys/fs/cgroup/cpu,cpuacct", V1))
    assert machine.look().unread == ()


@pytest.mark.parametrize(
    ("siblings", "visible", "cores"),
    [
        (["0-1", "0-1", "2-3", "2-3"], 4, 2),
        (["0,4", "1,5", "2,6", "3,7"] * 2, 8, 4),
        (["0-1", "0-1", "2-3", "2-3"], 3, 2),  # one hardware thread of the second core
        (["0-1", "0-1", "2", "3"], 4, 3),  # cores of two kinds
        (["0", "1"], 2, None),
        (["0-1", "0-1"], 4, 3),  # two that the system says nothing of
        (["", "\n"], 2, None),
    ],
)
def test_hardware_threads_of_a_core_count_once(
    siblings: list[str], visible: int, cores: int | None, machine: Machine
) -> None:
    """They share what kernels keep busy; whoever asks for more threads gets as many as there are processors."""
    for processor, text in enumerate(siblings):
        file = machine.root / f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    found = machine.look(visible)
    assert (found.visible, found.cores, found.count, found.most) == (visible, cores, cores or visible, visible)
    assert ("hardware threads of" in found.limit) == (cores is not None)
    by_hand = ThreadBudget(visible, probe=machine.probe(visible), environment={})
    assert by_hand.threads == visible


def test_an_unknown_affinity_is_no_limit(machine: Machine) -> None:
    def refused() -> int:
        raise PermissionError(1, "Operation not permitted")

    found = ProcessorProbe(machine.root, refused).look()
    assert found.visible == os.cpu_count()
    assert found.unread == ("affinity: Operation not permitted",)


# ── how many threads ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("setting", "environment", "threads", "reason"),
    [
        (None, {}, 3, "grants the time of 3.5 processors"),
        (2, {}, 2, "kernel_threads=2"),
        (2, {"ASURGE_THREADS": "1"}, 2, "kernel_threads=2"),
        (4, {}, 4, "kernel_threads=4"),  # by hand, a fraction may be used
        (5, {}, 4, "kernel_threads=5, and /sys"),
        (None, {"ASURGE_THREADS": " 2 ", "OMP_NUM_THREADS": "1"}, 2, "ASURGE_THREADS=2"),
        (None, {"ASURGE_THREADS": "99"}, 4, "ASURGE_THREADS=99, and /sys"),
        (None, {"ASURGE_THREADS": ""}, 3, "grants"),
        (None, {"OMP_NUM_THREADS": "1"}, 1, "OMP_NUM_THREADS=1"),
        (None, {"OMP_NUM_THREADS": "2,8", "SLURM_CPUS_PER_TASK": "3"}, 2, "OMP_NUM_THREADS=2"),
        (None, {"OMP_NUM_THREADS": "64", "SLURM_CPUS_PER_TASK": "2"}, 2, "SLURM_CPUS_PER_TASK=2"),
        (None, {"OMP_NUM_THREADS": "64"}, 3, "OMP_NUM_THREADS=64, and /sys"),
        (None, {"OMP_NUM_THREADS": "", "SLURM_CPUS_PER_TASK": "none"}, 3, "grants"),
    ],
)
def test_requested_threads_are_used(
    pod: Machine, setting: int | None, environment: Mapping[str, str], threads: int, reason: str
) -> None:
    pod.limit("/sys/fs/cgroup/pods/mine", 350_000)
    budget = pod.budget(setting, **environment)
    assert budget.threads == threads
    assert reason in budget.reason


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "2 threads", "9" * 30])
def test_an_invalid_environment_variable_is_an_error(machine: Machine, value: str) -> None:
    with pytest.raises(ConfigError, match=f"ASURGE_THREADS='{value}' must be an integer of at least 1"):
        machine.budget(ASURGE_THREADS=value)
    assert machine.budget(2, ASURGE_THREADS=value).threads == 2


def test_more_threads_than_processors_are_warned_of_once(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asurge")
    for _ in range(2):
        machine.budget(8, visible=2).report()
    messages = [(record.levelname, record.getMessage()) for record in caplog.records]
    warning = "kernel_threads=8 is more than there are (the process may run on 2 processors): 2 is taken instead"
    told = "kernel threads: 2 (kernel_threads=8, and the process may run on 2 processors)"
    assert messages == [("INFO", told), ("WARNING", warning), ("INFO", told)]
    caplog.clear()
    machine.budget(visible=2, OMP_NUM_THREADS="8").report()  # not what anybody asked of asurge
    assert [record.levelname for record in caplog.records] == ["INFO"]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_changes_are_seen_after_a_second(pod: Machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "asurge")
    clock, visible = Clock(), 4
    probe = ProcessorProbe(pod.root, lambda: range(visible))
    budget = ThreadBudget(probe=probe, environment={}, clock=clock)
    asked = ThreadBudget(3, probe=pod.probe(), environment={}, clock=clock)

    def changes() -> tuple[bool, int, int]:
        before = budget.refresh(), asked.refresh()
        clock.now_s += 1.5
        assert before == (False, False)
        return budget.refresh(), budget.threads, asked.refresh() and asked.threads

    assert budget.threads == 4
    pod.limit("/sys/fs/cgroup/pods", 200_000)  # made smaller while it runs
    assert changes() == (True, 2, 2)
    pod.limit("/sys/fs/cgroup/pods", 250_000)
    assert changes() == (True, 2, 3)  # the quota has changed, if not the first one's threads
    pod.limit("/sys/fs/cgroup/pods", "max")
    assert changes() == (True, 4, 3)
    visible = 1
    assert changes() == (True, 1, 0)
    visible = 4
    assert changes() == (True, 4, 0)
    pod.belongs("0::/other")  # moved
    pod.limit("/sys/fs/cgroup/other", 100_000)
    assert changes() == (True, 1, 1)
    (pod.root / "sys/fs/cgroup/other/cpu.max").unlink()
    assert changes() == (True, 4, 3)
    assert caplog.records[0].getMessage() == (
        "kernel threads: 2, no longer 4 (/sys/fs/cgroup/pods/cpu.max grants the time of 2 processors)"
    )


# ── this machine ────────────────────────────────────────────────────────────────────────────────


def processors_seen(*before: str) -> str:
    """Processors that a fresh process finds, before and after it has done something."""
    script = "\n".join(
        ("import os, sys", "from asurge.processors import ProcessorProbe", "probe = ProcessorProbe()",
         "print(probe.look().count)", *before, "print(probe.look().count)")
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().replace("\n", " ")


def test_a_quota_of_this_machine() -> None:
    """The quota of a process that is moved into a group, and into one below it."""
    here = ProcessorProbe().look().count
    with control_group() as (group, quota):
        quota.write_text("150000")
        below = group / "below"
        below.mkdir()
        try:
            for folder in (group, below):
                move = f"open({str(folder / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))"
                assert processors_seen(move) == f"{here} 1"
        finally:
            below.rmdir()


@pytest.mark.skipif(sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="there is one processor")
def test_the_affinity_of_this_process() -> None:
    one = min(os.sched_getaffinity(0))
    here = ProcessorProbe().look().count
    assert processors_seen(f"os.sched_setaffinity(0, {{{one}}})") == f"{here} 1"
    # As `taskset -p` does it: from outside, to the first thread only.
    other = "import threading; seen = []"
    read = "thread = threading.Thread(target=lambda: seen.append(probe.look().count)); thread.start(); thread.join()"
    assert (
        processors_seen(other, f"os.sched_setaffinity(os.getpid(), {{{one}}})", read, "print(*seen)") == f"{here} 1 1"
    )
    assert allowed() == os.sched_getaffinity(0)
