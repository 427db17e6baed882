"""The kernels for AMX on a processor without: its tiles are emulated, and what the kernels promise is asked of them again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asurge.ops import native
from tests.build_hook import COMPILER, REPOSITORY, hatch_build, needs_compiler
from tests.kernels import needs_kernels

SUITE = """
import pathlib, sys, pytest
from asurge.ops import native
from asurge.runner.compilation import use_persistent_cache

native.LIBRARIES = (pathlib.Path(sys.argv[1]),)
assert native.unavailable() is None
use_persistent_cache(None)  # the same programs are compiled when these tests run by themselves
sys.exit(pytest.main(sys.argv[2:]))
"""


@needs_kernels
@needs_compiler
def test_the_kernels_for_amx_keep_their_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = native.loaded()
    assert library is not None
    if "amx" in Path(library._name).name:
        pytest.skip("all tests run them")
    monkeypatch.setattr(hatch_build, "VARIANTS", {"amx": hatch_build.VARIANTS["amx"]})
    monkeypatch.setattr(hatch_build, "LIBRARIES", {"amx": hatch_build.LIBRARIES["amx"]})
    tiles = Path(__file__).with_name("emulated_amx.h")
    hatch_build.build(REPOSITORY / hatch_build.FOLDER, tmp_path, f"{COMPILER} -include {tiles}")
    tests = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("backends", "native_bounds", "packed")]
    options = ["-q", "-p", "no:cacheprovider", "-k", "native or packed", *tests]
    done = subprocess.run(
        [sys.executable, "-c", SUITE, str(tmp_path / hatch_build.LIBRARIES["amx"].name), *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
