"""The kernels for other kinds of processors than this one, as far as it can run them: what kernels promise is asked of them again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asurge.ops import native
from tests.build_hook import COMPILER, REPOSITORY, hatch_build, needs_compiler
from tests.kernels import needs_kernels

pytestmark = pytest.mark.slow

SUITE = """
import pathlib, sys, pytest
from asurge.ops import native

native.LIBRARIES = (pathlib.Path(sys.argv[1]),)
assert native.unavailable() is None
sys.exit(pytest.main(sys.argv[2:]))
"""


def kind() -> str:
    """The best instruction set of this processor."""
    library = native.loaded()
    assert library is not None
    return Path(library._name).stem.rpartition("_")[2]


OF_PRODUCTS = ("backends", "grouped", "native_bounds", "packed")
ALL = (*OF_PRODUCTS, "sampling")


def run_suite(library: Path, names: tuple[str, ...]) -> None:
    tests = [str(Path(__file__).with_name(f"test_{name}.py")) for name in names]
    options = ["-q", "-n0", "-p", "no:cacheprovider", "-k", "native or packed or kernel or grouped", *tests]
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
def test_kernels_of_older_instruction_sets_pass_the_kernel_tests(other: str) -> None:
    kinds = list(hatch_build.VARIANTS)
    if kinds.index(other) <= kinds.index(kind()):
        pytest.skip("all tests run them" if other == kind() else f"this processor has {kind()} only")
    run_suite(native.FOLDER / f"libasurge_kernels_{other}.so", ALL)


@needs_kernels
@needs_compiler
@pytest.mark.parametrize("other", ["amx", "avx512"])
def test_kernels_of_newer_instruction_sets_pass_the_kernel_tests_emulated(
    other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds, here = list(hatch_build.VARIANTS), kind()
    if kinds.index(other) >= kinds.index(here):
        pytest.skip(f"this processor has {here} itself")
    lacking = [name for name in ("avx512", "amx") if kinds.index(other) <= kinds.index(name) < kinds.index(here)]
    headers = [f"-include {Path(__file__).with_name(f'emulated_{name}.h')}" for name in lacking]
    # All that is not emulated is done by this processor's own instructions.
    own = [*hatch_build.VARIANTS[other][:1], *hatch_build.VARIANTS[here][1:]]
    monkeypatch.setattr(hatch_build, "VARIANTS", {other: own})
    monkeypatch.setattr(hatch_build, "LIBRARIES", {other: hatch_build.LIBRARIES[other]})
    hatch_build.build(REPOSITORY / hatch_build.FOLDER, tmp_path, " ".join([str(COMPILER), "-Wno-psabi", *headers]))
    # Kernels for AMX draw with AVX-512.
    run_suite(tmp_path / hatch_build.LIBRARIES[other].name, OF_PRODUCTS if other == "amx" else ALL)
