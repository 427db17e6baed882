"""Builds the CPU kernels into the wheel, where that is possible; everywhere else the package is pure Python."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("asurge/ops/native")
COMMON = ["-std=c++20", "-O3", "-fPIC", "-ffp-contract=off"]
AVX512 = [
    "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mavx512vbmi", "-mavx512vnni", "-mfma"
]  # fmt: skip
# The same sources make a library for each of these kinds of processors, told by the first flag; but `ffi_bindings` is the same for all,
# and `cpu_support` asks whether this processor is of a kind, before its instructions are used.
VARIANTS = {
    "amx": ["-DASURGE_AMX", *AVX512, "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
    "avx512": ["-DASURGE_AVX512", *AVX512],
    "avx2": ["-DASURGE_AVX2", "-mavx2", "-mfma", "-mf16c"],
}
LIBRARIES = {variant: FOLDER / f"libasurge_kernels_{variant}.so" for variant in VARIANTS}


class NativeBuildHook(BuildHookInterface):
    """``ASURGE_NATIVE=0`` leaves the kernels out, ``ASURGE_NATIVE=1`` fails where they cannot be built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        wanted = os.environ.get("ASURGE_NATIVE", "auto")
        compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
        fits = sys.platform == "linux" and platform.machine() == "x86_64"
        root = Path(self.root)
        if version == "editable":  # which runs whatever lies in the tree; a wheel has only what is named here
            for library in LIBRARIES.values():
                (root / library).unlink(missing_ok=True)
        if wanted == "0" or not (fits and compiler):
            if wanted == "1":
                raise RuntimeError("ASURGE_NATIVE=1, but the CPU kernels need Linux on x86-64 and g++ or clang++")
            return
        try:
            build(root / FOLDER, root / FOLDER, compiler)
        except (subprocess.CalledProcessError, ImportError, OSError) as error:
            if wanted == "1":
                raise
            self.app.display_warning(f"the CPU kernels do not build ({error}): plain JAX will serve")
            return
        build_data["artifacts"] += [str(library) for library in LIBRARIES.values()]
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"


def build(folder: Path, to: Path, compiler: str) -> None:
    """Compile all sources for each kind of processor, in parallel, and link them into a library in ``to``."""
    import jaxlib  # its FFI headers: only newer runtimes than them are compatible, so the oldest supported is pinned

    include = f"-isystem{Path(jaxlib.__file__).parent / 'include'}"
    with tempfile.TemporaryDirectory() as scratch:
        objects: dict[str, list[str]] = {variant: [] for variant in VARIANTS}
        running: dict[tuple[str, ...], subprocess.Popen[bytes]] = {}
        made: dict[tuple[str, ...], str] = {}
        for variant, flags in VARIANTS.items():
            for source in sorted(folder.glob("*.cc")):
                own = {"ffi_bindings": [], "cpu_support": flags[:1]}.get(source.stem, flags)
                command = (*shlex.split(compiler), *COMMON, *own, include, "-c", str(source))
                if command not in running:
                    made[command] = str(Path(scratch) / f"{source.stem}-{variant}.o")
                    running[command] = subprocess.Popen([*command, "-o", made[command]])
                objects[variant].append(made[command])
        failed = [(command, process.returncode) for command, process in running.items() if process.wait()]
        if failed:
            raise subprocess.CalledProcessError(failed[0][1], failed[0][0])
        for variant, library in LIBRARIES.items():
            link = ["-shared", *objects[variant], "-o", str(to / library.name), "-lpthread"]
            subprocess.run([*shlex.split(compiler), *link], check=True)


if __name__ == "__main__":
    build(FOLDER, FOLDER, os.environ.get("CXX", "g++"))
