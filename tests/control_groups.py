"""Control groups of this machine, for tests that put a process into one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_PLACES = ((Path("/sys/fs/cgroup/cpu"), "cpu.cfs_quota_us"), (Path("/sys/fs/cgroup"), "cpu.max"))


@contextmanager
def control_group() -> Iterator[tuple[Path, Path]]:
    """A new group, and the file that a number of microseconds in each 100,000 is to be written to. The test is skipped where none can
    be made."""
    folder, file = next(((folder, file) for folder, file in _PLACES if (folder / "cgroup.procs").is_file()), _PLACES[0])
    group = folder / f"asurge-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        if not (group / file).is_file():
            pytest.skip("control groups do not limit processors here")
        yield group, group / file
    finally:
        group.rmdir()
