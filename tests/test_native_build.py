"""The kernels are built where that is possible; where they are not, plain JAX serves and says why."""

from __future__ import annotations

import ctypes
import functools
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asurge import Engine, SamplingParams
from asurge.errors import ConfigError
from asurge.ops import native
from tests.build_hook import COMPILER, REPOSITORY, hatch_build, needs_compiler
from tests.checkpoints import write_tiny
from tests.kernels import SIZES


class App:
    """Stand-in for hatchling's application, which shows warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source tree in which libraries of before lie around."""
    for library in libraries(tmp_path):
        library.parent.mkdir(parents=True, exist_ok=True)
        library.write_text("of before")
    return tmp_path


def libraries(root: Path) -> list[Path]:
    return [root / library for library in hatch_build.LIBRARIES.values()]


def there(root: Path) -> list[bool]:
    return [library.exists() for library in libraries(root)]


def initialize(root: Path, target: str = "wheel", version: str = "standard") -> tuple[dict[str, Any], list[str]]:
    """Run the build hook; return what it adds to a build, and its warnings."""
    app, data = App(), {"artifacts": [], "pure_python": True}
    hook = hatch_build.NativeBuildHook(str(root), {}, None, None, str(root), target, app)
    hook.initialize(version, data)
    return data, app.warnings


def pretend_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to be the platform of the kernels."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


VERSIONS = ["standard", "editable"]
"""Versions of a wheel: standard, which has only what the hook names, and editable, which runs what lies in the tree."""
PURE: dict[str, Any] = {"artifacts": [], "pure_python": True}


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="they are for Linux on x86-64")
def test_the_kernels_build_and_load(tmp_path: Path) -> None:
    """The libraries of an installation that were just built are not built again, which takes most of a minute."""
    built = native.FOLDER if all(path.is_file() for path in native.LIBRARIES) else tmp_path
    if built == tmp_path:
        hatch_build.build(REPOSITORY / hatch_build.FOLDER, tmp_path, COMPILER)
    for path in native.LIBRARIES:
        loaded = ctypes.CDLL(str(built / path.name))
        assert all(hasattr(loaded, target) for target in native.TARGETS)
        assert loaded.asurge_available() in (0, 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_without_kernels_a_wheel_is_pure(version: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASURGE_NATIVE", "0")
    assert initialize(root, version=version) == (PURE, [])
    assert there(root) == [version == "standard"] * len(native.LIBRARIES)


def test_a_source_distribution_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASURGE_NATIVE", "1")
    assert initialize(root, "sdist") == (PURE, [])
    assert there(root) == [True] * len(native.LIBRARIES)


@pytest.mark.parametrize("lacks", ["compiler", "platform"])
def test_where_they_cannot_be_built_a_wheel_is_pure_unless_they_are_wanted(
    lacks: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    if lacks == "compiler":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    else:
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.delenv("ASURGE_NATIVE", raising=False)
    assert initialize(root) == (PURE, [])
    monkeypatch.setenv("ASURGE_NATIVE", "1")
    with pytest.raises(RuntimeError, match="ASURGE_NATIVE=1"):
        initialize(root)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("compiler", ["false", "no-such-compiler", "env false"])
def test_a_compiler_that_fails_leaves_a_pure_wheel_unless_they_are_wanted(
    compiler: str, version: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / hatch_build.FOLDER / "ffi_bindings.cc").touch()
    pretend_to_fit(monkeypatch)
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.delenv("ASURGE_NATIVE", raising=False)
    data, [warning] = initialize(root, version=version)
    assert data == PURE
    assert "plain JAX will serve" in warning
    assert there(root) == [version == "standard"] * len(native.LIBRARIES)
    monkeypatch.setenv("ASURGE_NATIVE", "1")
    with pytest.raises((subprocess.CalledProcessError, OSError)):
        initialize(root)


def test_a_wheel_with_kernels_is_of_one_platform(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(folder: Path, to: Path, compiler: str) -> None:
        for library in hatch_build.LIBRARIES.values():
            (to / library.name).write_text(compiler)

    pretend_to_fit(monkeypatch)
    monkeypatch.setattr(hatch_build, "build", build)
    monkeypatch.setenv("CXX", "some-compiler")
    monkeypatch.setenv("ASURGE_NATIVE", "1")
    data, _ = initialize(root)
    assert data == {
        "artifacts": [str(one) for one in hatch_build.LIBRARIES.values()], "pure_python": False, "tag": "py3-none-linux_x86_64",
    }  # fmt: skip
    assert [library.read_text() for library in libraries(root)] == ["some-compiler"] * len(native.LIBRARIES)


# An installation without them.

MISSING = "this installation was built without them"


@pytest.fixture
def library_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Looks for the library in another place, as a new process would."""

    def set_path(path: Path) -> None:
        monkeypatch.setattr(native, "LIBRARIES", (path,))
        monkeypatch.setattr(native, "unavailable", functools.cache(native.unavailable.__wrapped__))

    return set_path


def test_a_library_that_is_missing_or_damaged_is_a_reason(library_at: Callable[[Path], None], tmp_path: Path) -> None:
    library_at(tmp_path / "none.so")
    assert MISSING in str(native.unavailable())
    (tmp_path / "damaged.so").write_bytes(b"\x7fELF and no more")
    library_at(tmp_path / "damaged.so")
    assert "damaged.so does not load" in str(native.unavailable())


async def test_an_engine_serves_without_the_kernels_and_says_why(
    library_at: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library_at(tmp_path / "none.so")
    folder = str(write_tiny(tmp_path, **SIZES, num_hidden_layers=1))
    small: dict[str, Any] = dict(max_num_seqs=2, max_num_batched_tokens=32, max_model_len=64, page_size=32, silent_mode=True)  # fmt: skip
    with caplog.at_level("WARNING", logger="asurge"):
        async with Engine(folder, **small) as engine:
            [output] = await engine.generate(["Hello"], SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True))
    assert output.num_generated_tokens == 5
    assert any("plain XLA" in message and MISSING in message for message in caplog.messages)
    with pytest.raises(ConfigError, match=MISSING):
        await Engine(folder, kernels="native", **small).initiate()
