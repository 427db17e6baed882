"""The build hook of the kernels; tests that need it skip outside the repository."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

hatch_build = pytest.importorskip("hatch_build", reason="needs the repository and hatchling", exc_type=ImportError)
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
REPOSITORY = Path(hatch_build.__file__).parent
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
