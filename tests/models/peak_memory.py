"""Writes random weights for a config, loads them in bfloat16, also for kernels where a second argument names them, and prints the
peak of resident memory as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from asurge.models import convert, family_for, load_model, open_model, read_config
from asurge.models.weights.checkpoint import checkpoint_table


def write_weights(folder: Path) -> None:
    raw = read_config(folder)
    table = checkpoint_table(family_for(raw).config(raw))
    sources = [source for row in table.values() for source in row]
    save_file({one.name: np.ones(one.shape, ml_dtypes.bfloat16) for one in sources}, folder / "model.safetensors")


def resident_bytes(field: str) -> int:
    """``VmHWM`` (the peak) or ``VmRSS`` (now) of this process."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields[field].split()[0]) * 1024


def main() -> None:
    folder = Path(sys.argv[1])
    if not (folder / "model.safetensors").exists():
        import subprocess

        # In a process of its own, so that its memory does not count.
        subprocess.run([sys.executable, "-c", f"from pathlib import Path; import sys; sys.path[:0] = {sys.path!r}; from peak_memory import write_weights; write_weights(Path({str(folder)!r}))"], check=True)  # fmt: skip
    jax.block_until_ready(jax.numpy.ones(8) + 1)
    before = resident_bytes("VmRSS")
    if len(sys.argv) > 2:
        model = open_model(folder, dtype="bfloat16", progress=False)
        convert(model, kernels=sys.argv[2], quantization=None)
    else:
        model = load_model(folder, dtype="bfloat16", progress=False)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    print(json.dumps({"weights_bytes": weights, "peak_bytes": resident_bytes("VmHWM") - before}))


if __name__ == "__main__":
    main()
