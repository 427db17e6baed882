"""The kernels for other kinds of processors than this one, as far as it can run them: what kernels promise is asked of them again."""

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

native.LIBRARIES = (pathlib.Path(sys.argv[1]),)
assert native.unavailable() is None
sys.exit(pytest.main(sys.argv[2:]))
"""


def kind() -> str:
    """Of this processor."""
    library = native.loaded()
    assert library is not None
    return Path(library._name).stem.rpartition("_")[2]


def run_suite(library: Path) -> None:
    tests = [
        str(Path(__file__).with_name(f"test_{name}.py")) for name in ("backends", "native_bounds", "packed", "sampling")
    ]
    options = ["-q", "-p", "no:cacheprovider", "-k", "native or packed or kernel", *tests]
    done = subprocess.run(
        [sys.executable, "-c", SUITE, str(library), *options],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout


@needs_kernels
@pytest.mark.parametrize("other", ["avx512", "avx2"])
def test_the_kernels_for_lesser_processors_keep_their_promises(other: str) -> None:
    kinds = list(hatch_build.VARIANTS)
    if kinds.index(other) <= kinds.index(kind()):
        pytest.skip("all tests run them" if other == kind() else f"this processor has {kind()} only")
    run_suite(native.FOLDER / f"libasurge_kernels_{other}.so")


@needs_kernels
@needs_compiler
def test_the_kernels_for_amx_keep_their_promises_over_emulated_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind() == "amx":
        pytest.skip("all tests run them")
    flags = hatch_build.VARIANTS["amx"]
    if kind() == "avx2":  # what is not tiles is then done by this processor's own instructions
        flags = [flag for flag in flags if flag not in hatch_build.AVX512] + ["-mavx2", "-mfma"]
    monkeypatch.setattr(hatch_build, "VARIANTS", {"amx": flags})
    monkeypatch.setattr(hatch_build, "LIBRARIES", {"amx": hatch_build.LIBRARIES["amx"]})
    tiles = Path(__file__).with_name("emulated_amx.h")
    hatch_build.build(REPOSITORY / hatch_build.FOLDER, tmp_path, f"{COMPILER} -include {tiles}")
    run_suite(tmp_path / hatch_build.LIBRARIES["amx"].name)
