"""The benchmark of GPUs, in small on any device: that it runs, not what it measures."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_everything_in_small(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    gpu.main(["--tiny", "--kernels", "pallas", "--quantization", "int8", "--json", str(path)])
    found = json.loads(path.read_text())
    assert found["machine"]["jax"] == jax.__version__
    assert len(found["checks"]) == 2
    assert all(check["right"] for check in found["checks"])
    assert [line["workload"] for line in found["steps"]] == ["decode"] * 2 + ["prefill"]
    assert all(line["step_s"] > 0 and line["floor_s"] > 0 for line in found["steps"])


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_measure() -> None:
    with pytest.raises(SystemExit, match="no GPU"):
        gpu.main([])
