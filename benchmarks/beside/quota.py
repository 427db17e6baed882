"""A cgroup with a quota of processor time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PERIOD_US = 100_000


class NoQuotaError(Exception):
    """Why none can be set here."""


@contextmanager
def quota(processors: float, *, name: str = "asurge-quota") -> Iterator[Path]:
    """A group of this much processor time, until the block ends. Processes join it by writing to its ``cgroup.procs``.

    Raises:
        NoQuotaError: control groups are not there, or not to be written.
    """
    parent, version = _controller()
    group = parent / f"{name}-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise NoQuotaError(f"no group can be made in {parent} ({error.strerror})") from error
    try:
        _limit(group, version, processors)
        yield group
    finally:
        _remove(group)


def throttled(group: Path) -> dict[str, float]:
    """Number and seconds of the group's throttlings so far."""
    fields = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    seconds = int(fields["throttled_usec"]) / 1e6 if "throttled_usec" in fields else int(fields["throttled_time"]) / 1e9
    return {"throttled_periods": float(fields["nr_throttled"]), "throttled_s": seconds}


def cpu_controller(mounts: str, membership: str) -> tuple[Path, int] | None:
    """This process's group of the cpu controller, and its version of control groups, from the texts of ``/proc/self/mountinfo``
    and ``/proc/self/cgroup``; None if neither version is mounted."""
    found: dict[int, tuple[str, Path]] = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split(maxsplit=2)
        if kind == "cgroup" and "cpu" in options.split(","):
            found[1] = root, Path(point)
        elif kind == "cgroup2":
            found[2] = root, Path(point)
    own = {}
    for line in membership.splitlines():
        number, controllers, path = line.split(":", 2)
        if "cpu" in controllers.split(","):
            own[1] = path
        elif number == "0":
            own[2] = path
    for version in (1, 2):
        if version in found and version in own:
            root, point = found[version]
            return point / os.path.relpath(own[version], root), version
    return None


def _controller() -> tuple[Path, int]:
    try:
        found = cpu_controller(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    except OSError as error:
        raise NoQuotaError(f"control groups cannot be read ({error})") from error
    if found is None:
        raise NoQuotaError("no control groups with the cpu controller are mounted")
    return found


def _limit(group: Path, version: int, processors: float) -> None:
    budget = round(processors * PERIOD_US)
    try:
        if version == 1:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(budget))
        else:
            (group / "cpu.max").write_text(f"{budget} {PERIOD_US}")
    except OSError as error:
        raise NoQuotaError(f"{group} takes no quota ({error.strerror})") from error


def _remove(group: Path, within_s: float = 5.0) -> None:
    """A group can go once its last process is gone, which the kernel may notice a moment later."""
    until_s = time.monotonic() + within_s
    while True:
        try:
            group.rmdir()
            return
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.02)
