"""The public names exist, and `import asurge` stays light."""

from __future__ import annotations

import subprocess
import sys

import asurge


def test_every_public_name_is_there() -> None:
    for name in asurge.__all__:
        assert getattr(asurge, name) is not None
    assert set(asurge.__all__) <= set(dir(asurge))


def test_importing_asurge_imports_neither_jax_nor_transformers() -> None:
    heavy = "jax", "flax", "transformers", "numpy", "anyio"
    code = f"import asurge, asurge.cli.main, sys; print([name for name in {heavy[:3]} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
