"""Number of processors that this process really has, and of threads to start on them.

Affinity (cpusets are part of it) says on how many a process may run; the quotas of its control groups say how much of their time it
gets. A container with one processor's time on a host of 64 sees all 64: with a thread on each it would use up its time in the first
milliseconds of every period, and stand still for the rest.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from asurge.errors import ConfigError

THREADS_VARIABLE = "ASURGE_THREADS"
SCHEDULER_VARIABLES = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK")
"""Variables in which schedulers say what they have given a process: Ray, Dask and torchrun in the first, Slurm in the second."""

LOOK_S = 1.0
"""Seconds between two looks at the processors."""

_GONE = (errno.ENOENT, errno.ENODEV, errno.ENOTDIR)

_log = logging.getLogger("asurge")


@dataclasses.dataclass(frozen=True, slots=True)
class Quota:
    """Processor time that a control group may use: ``time_us`` in each ``period_us``, as ``file`` says."""

    time_us: int
    period_us: int
    file: str

    @property
    def processors(self) -> float:
        """The quota as a number of processors."""
        return self.time_us / self.period_us

    def __str__(self) -> str:
        return f"{self.file} grants the time of {_named(self.processors)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Processors:
    """The processors of this process.

    Attributes:
        visible: on how many it may run.
        cores: of how many physical cores these are hardware threads; None: each is a core, or nobody says.
        quota: the tightest of the quotas it is under; None: there is none.
        unread: files that should hold a quota and could not be read or understood, each with the reason.
    """

    visible: int
    cores: int | None = None
    quota: Quota | None = None
    unread: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of whole processors, at least one.

        A core counts once: its hardware threads share the arithmetic units and the bandwidth that kernels keep busy. A fraction is
        left to what else the process does, its event loop first of all: threads that need more time than there is are all stopped
        together until the period ends.
        """
        cores = self.cores or self.visible
        return cores if self.quota is None else min(cores, self._within(self.quota.time_us // self.quota.period_us))

    @property
    def most(self) -> int:
        """The largest useful number of threads: the processors, those it has a fraction of included."""
        return self.visible if self.quota is None else self._within(-(-self.quota.time_us // self.quota.period_us))

    @property
    def time_limit(self) -> float | None:
        """Processors whose time the process may use, where that is less than those it may run on."""
        return self.quota.processors if self.quota is not None and self.quota.processors < self.visible else None

    def _within(self, count: int) -> int:
        return max(min(self.visible, count), 1)

    @property
    def limit(self) -> str:
        """Description of what limits the processors, for logs."""
        if self.time_limit is not None:
            return str(self.quota)
        cores = f", hardware threads of {self.cores} core{'s' * (self.cores != 1)}" if self.cores else ""
        return f"the process may run on {_named(self.visible)}{cores}"


def allowed() -> Collection[int]:
    """Return the processors on which the calling thread or the process may run, whichever are fewer.

    The affinity of the process's first thread is what ``taskset -p`` changes.

    Raises:
        OSError: the system does not say.
    """
    if sys.platform != "linux":
        return range(_counted())
    return min((os.sched_getaffinity(process) for process in (0, os.getpid())), key=len)


class _Mount(NamedTuple):
    """A mount of a part of a hierarchy of control groups."""

    version: Literal[1, 2]
    root: PurePosixPath
    at: PurePosixPath


class _QuotaFiles(NamedTuple):
    """Files of a control group's quota: time and period, in one file or in two."""

    quota: str
    period: str | None


class ProcessorProbe:
    """Looks at what a process has. Where the quotas are is found once, and again when the process changes its control group.

    Args:
        root: of the file system, for ``/proc`` and ``/sys``.
        affinity: the processors on which the process may run.
    """

    def __init__(self, root: Path = Path("/"), affinity: Callable[[], Collection[int]] | None = None) -> None:
        self._root = "" if root == Path("/") else str(root)
        self._affinity = affinity or allowed
        self._own: str | None = None
        self._files: tuple[_QuotaFiles, ...] = ()
        self._unfound: list[str] = []
        self._siblings: dict[int, str] = {}

    def look(self) -> Processors:
        """Read the processors that the process has at this moment."""
        unread: list[str] = []
        try:
            visible = self._affinity()
        except OSError as error:
            visible = range(_counted())
            unread.append(f"affinity: {error.strerror or error}")
        own = self._read("/proc/self/cgroup", unread)
        if own != self._own:
            self._own, self._unfound = own, []
            self._files = tuple(self._find(own or "", self._unfound))
        quotas = [quota for files in self._files if (quota := self._quota(files, unread)) is not None]
        tightest = min(quotas, key=lambda quota: quota.processors, default=None)
        cores = len({self._core(processor) for processor in visible})
        return Processors(len(visible), cores if cores < len(visible) else None, tightest, (*unread, *self._unfound))

    def _core(self, processor: int) -> str:
        """Return the hardware threads of a processor's core, or the processor alone where they are not known."""
        if processor not in self._siblings:
            file = f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
            self._siblings[processor] = (self._read(file, []) or "").strip() or str(processor)
        return self._siblings[processor]

    def _find(self, own: str, unread: list[str]) -> Iterator[_QuotaFiles]:
        """The quotas of the groups that the process is in, in each hierarchy that may control processors, and of all groups above
        them as far as they can be seen."""
        paths = dict(_own_paths(own))
        mounts = list(_mounts(self._read("/proc/self/mountinfo", unread) or "")) if paths else []
        if not any(mount.version in paths for mount in mounts):
            unread += [f"control group {path}: not mounted" for path in paths.values() if path != PurePosixPath("/")]
        for version, path in paths.items():
            here = [mount for mount in mounts if mount.version == version]
            below = [(mount, inside) for mount in here if (inside := self._inside(mount, path)) is not None]
            # A path may be that of another namespace. What is mounted in a container is the container's group then.
            chains = below or [(mount, PurePosixPath()) for mount in here]
            for folder in sorted({mount.at / one for mount, inside in chains for one in (inside, *inside.parents)}):
                if version == 2:
                    yield _QuotaFiles(f"{folder}/cpu.max", None)
                else:
                    yield _QuotaFiles(f"{folder}/cpu.cfs_quota_us", f"{folder}/cpu.cfs_period_us")

    def _inside(self, mount: _Mount, path: PurePosixPath) -> PurePosixPath | None:
        """Return the path of a group below a mount; None if it is not there."""
        try:
            inside = path.relative_to(mount.root)
        except ValueError:
            return None
        return inside if ".." not in inside.parts and os.path.isdir(f"{self._root}{mount.at / inside}") else None

    def _quota(self, files: _QuotaFiles, unread: list[str]) -> Quota | None:
        """Read the quota of one group; None if it sets no limit, or does not say."""
        text = self._read(files.quota, unread)
        if text is None or text.split()[:1] in (["max"], ["-1"]):
            return None
        if files.period is not None:
            text = f"{text} {self._read(files.period, unread) or ''}"
        time_us, period_us = [*map(_number, text.split()), 0, 0][:2]
        if time_us and period_us:
            return Quota(time_us, period_us, files.quota)
        unread.append(f"{files.quota}: {text[:40].strip()!r}")
        return None

    def _read(self, file: str, unread: list[str]) -> str | None:
        """The text of a file; None if there is none, or it cannot be read."""
        try:
            with open(self._root + file, "rb") as opened:
                return opened.read().decode("utf-8", "replace")
        except OSError as error:
            if error.errno not in _GONE:
                unread.append(f"{file}: {error.strerror}")
            return None


def _named(processors: float) -> str:
    return f"{processors:.4g} processor{'s' * (processors != 1)}"


def _counted() -> int:
    return os.cpu_count() or 1


def _own_paths(text: str) -> Iterator[tuple[Literal[1, 2], PurePosixPath]]:
    """Parse ``/proc/self/cgroup``: a process's group in the hierarchies that may have quotas."""
    for line in text.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if path.startswith("/") and (number == "0" or "cpu" in controllers.split(",")):
            yield 2 if number == "0" else 1, PurePosixPath(path)


def _mounts(text: str) -> Iterator[_Mount]:
    """Parse ``/proc/self/mountinfo``: where hierarchies that may have quotas are mounted."""
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        where, how = before.split(), after.split()
        if len(where) < 5 or len(how) < 3:
            continue
        root, at = (PurePosixPath(re.sub(r"\\([0-7]{3})", _unescaped, field)) for field in where[3:5])
        if how[0] == "cgroup2":
            yield _Mount(2, root, at)
        elif how[0] == "cgroup" and "cpu" in how[2].split(","):
            yield _Mount(1, root, at)


def _unescaped(octal: re.Match[str]) -> str:
    return chr(int(octal[1], 8))


def _number(text: str) -> int:
    """A positive decimal number of a plausible length; 0 for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0


class ThreadBudget:
    """Number of threads that an engine may start for computing: the number requested, as far as there are processors.

    In this order: the engine's setting, `THREADS_VARIABLE`, what a scheduler has given the process (`SCHEDULER_VARIABLES`), and
    `Processors.count`.

    Attributes:
        threads: at least one.

    Raises:
        ConfigError: the environment variable holds no such number.
    """

    def __init__(
        self,
        kernel_threads: int | None = None,
        *,
        probe: ProcessorProbe | None = None,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._by_hand = _requested_by_hand(kernel_threads, environment)
        self._given = _given_by_scheduler(environment)
        self._probe, self._clock = probe or ProcessorProbe(), clock
        self._seen, self._looked_s = self._probe.look(), clock()
        self.threads = self._allotted()

    @property
    def reason(self) -> str:
        """Reason of the number of threads, for logs."""
        requested = self._by_hand or self._given
        if requested is None:
            return self._seen.limit
        name, count = requested
        return f"{name}={count}" + (f", and {self._seen.limit}" if self.threads < count else "")

    @property
    def time_limit(self) -> float | None:
        """Processors whose time a quota grants; None if there is none that matters."""
        return self._seen.time_limit

    @property
    def is_due(self) -> bool:
        """Whether the last look at the processors was a while ago."""
        return self._clock() - self._looked_s >= LOOK_S

    def refresh(self) -> bool:
        """Look at the processors again, if that is due; return whether they have changed."""
        if not self.is_due:
            return False
        self._looked_s = self._clock()
        seen, before = self._probe.look(), self.threads
        if seen == self._seen:
            return False
        self._seen = seen
        self.threads = self._allotted()
        if self.threads != before:
            _log.info("kernel threads: %d, no longer %d (%s)", self.threads, before, self.reason)
        self._warn()
        return True

    def report(self) -> None:
        """Log the number and its reason, and warn, once in a process, of what could not be done as it was meant."""
        _log.info("kernel threads: %d (%s)", self.threads, self.reason)
        self._warn()

    def _allotted(self) -> int:
        if self._by_hand is not None:
            return min(self._by_hand[1], self._seen.most)
        return self._seen.count if self._given is None else min(self._given[1], self._seen.count)

    def _warn(self) -> None:
        if self._by_hand is not None and self.threads < self._by_hand[1]:
            name, count = self._by_hand
            _warn_once(f"{name}={count} is more than there are ({self._seen.limit}): {self.threads} is taken instead")
        if self._seen.unread:
            _warn_once(
                f"processor limits cannot be read ({'; '.join(self._seen.unread)}): they count as none, and kernel threads "
                f"are {self.threads} ({self.reason}); say how many with kernel_threads or {THREADS_VARIABLE}"
            )


@functools.cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)


def _requested_by_hand(kernel_threads: int | None, environment: Mapping[str, str]) -> tuple[str, int] | None:
    if kernel_threads is not None:
        return "kernel_threads", kernel_threads
    if not (text := environment.get(THREADS_VARIABLE, "").strip()):
        return None
    if not (count := _number(text)):
        raise ConfigError(f"{THREADS_VARIABLE}={text!r} must be an integer of at least 1: change it, or leave it out")
    return THREADS_VARIABLE, count


def _given_by_scheduler(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """The least that a variable says; OpenMP's may be a list with a number for each level, of which the first counts."""
    counts = {name: _number(environment.get(name, "").partition(",")[0].strip()) for name in SCHEDULER_VARIABLES}
    name = min(counts, key=lambda name: counts[name] or math.inf)
    return (name, counts[name]) if counts[name] else None
