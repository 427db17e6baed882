"""Measure the bandwidth of this machine's memory: the limit of a decode step.

`measure_bandwidth` runs this file as a process of its own, so that neither its buffer counts in the peak memory of the measured
process, nor its threads in the load.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from asurge.errors import BenchmarkError

BUFFER_BYTES = 1 << 30
"""Larger than the caches: on a machine with 480 MB of them, buffers of 1 and 2 GiB gave the same figure."""
_SECONDS = 1.5
_LIMIT_S = 120


def measure_bandwidth() -> float:
    """Bytes a second that all cores (or the accelerator) can read together: the best of passes taking about a second.

    Raises:
        BenchmarkError: the measuring process failed.
    """
    command = [sys.executable, "-m", "asurge.bench.bandwidth"]
    try:
        # On huge pages, as weights lie (`asurge.ops.native.huge_pages`): some machines read them a quarter faster.
        environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_LIMIT_S, env=environment)
        return float(json.loads(done.stdout)["bytes_per_s"])
    except (subprocess.SubprocessError, ValueError, KeyError) as error:
        detail = error.stderr.strip().splitlines()[-1:] if isinstance(error, subprocess.CalledProcessError) else error
        raise BenchmarkError(f"the memory bandwidth could not be measured ({detail}): leave it out with --no-roofline") from error  # fmt: skip


def host_bandwidth(buffer_bytes: int = BUFFER_BYTES, seconds: float = _SECONDS) -> float:
    """Measure bytes read a second, by summing 64-bit integers with one thread a core.

    numpy releases the interpreter, and adding a word is far cheaper than reading it from memory. Nothing is written but the sums.
    """
    from asurge.bench.machine import usable_cores

    threads = usable_cores()
    words: npt.NDArray[np.int64] = np.ones(buffer_bytes // 8, np.int64)
    parts = np.array_split(words, threads)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        until_s = time.perf_counter() + seconds
        while time.perf_counter() < until_s or best == 0.0:
            began_s = time.perf_counter()
            total = sum(pool.map(_sum, parts))
            best = max(best, words.nbytes / (time.perf_counter() - began_s))
            assert total == len(words)
    return best


def device_bandwidth(buffer_bytes: int = BUFFER_BYTES, seconds: float = _SECONDS) -> float:
    """Measure an accelerator's bandwidth by a reduction over a buffer in its memory."""
    import jax
    import jax.numpy as jnp

    words = jnp.ones((buffer_bytes // 4,), jnp.int32)
    reduce = jax.jit(jnp.max).lower(words).compile()
    best, until_s = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until_s or best == 0.0:
        began_s = time.perf_counter()
        reduce(words).block_until_ready()
        best = max(best, words.nbytes / (time.perf_counter() - began_s))
    return best


def _sum(part: npt.NDArray[np.int64]) -> int:
    return int(part.sum())


def _main() -> None:
    import jax

    on_host = jax.devices()[0].platform == "cpu"
    sys.stdout.write(json.dumps({"bytes_per_s": host_bandwidth() if on_host else device_bandwidth(4 * BUFFER_BYTES)}))


if __name__ == "__main__":
    _main()
