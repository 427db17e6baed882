"""The team of threads behind the CPU kernels: any size, any number of callers, idle when nothing is to be done."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from asurge.ops import native
from asurge.ops.attention import AttentionShape, Heads, NativeAttention, Rows
from asurge.ops.packed import pack, packed_argmax, packed_linear
from tests.build_hook import COMPILER, REPOSITORY, hatch_build, needs_compiler
from tests.kernels import needs_kernels
from tests.ops.backends import where_promised

pytestmark = needs_kernels

Product = Callable[[], npt.NDArray[np.float32]]


@pytest.fixture
def resize() -> Iterator[Callable[[int], None]]:
    """Sets how many threads the kernels use; restored behind the test."""
    library = native.loaded()
    yield library.asurge_set_threads
    library.asurge_set_threads(len(os.sched_getaffinity(0)))


def sample(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16)


def product(seed: int, rows: int = 64, depth: int = 256, columns: int = 560) -> Product:
    """Big enough that several members prepare and multiply."""
    x, norm, weight = sample(seed, rows, depth), sample(seed, depth), pack(sample(seed + 1, columns, depth))
    call = jax.jit(partial(packed_linear, epsilon=1e-5)).lower(x, weight, norm=norm).compile()
    return lambda: np.asarray(call(x, weight, norm=norm).astype(jnp.float32))


def largest(seed: int, columns: int = 960) -> Product:
    x, weight = sample(seed, 40, 64), pack(sample(seed + 1, columns, 64))
    call = jax.jit(partial(packed_argmax, candidates=columns)).lower(x, weight).compile()
    return lambda: np.asarray(call(x, weight))


def attention(seed: int) -> Product:
    backend = NativeAttention(AttentionShape(4, 2, 32, 32, jnp.dtype(jnp.bfloat16)))
    start, length = jnp.asarray([9, 40, 0, 32], jnp.int32), jnp.asarray([1, 0, 32, 20], jnp.int32)
    rows = Rows(2, 2, 32, start, length, jnp.arange(8, dtype=jnp.int32).reshape(4, 2))
    angle = sample(seed, rows.tokens, 1, 16).astype(jnp.float32)
    heads = Heads(sample(seed + 1, rows.tokens, 8, 32), 4, 2, jnp.cos(angle), jnp.sin(angle))

    def run() -> tuple[jax.Array, jax.Array, jax.Array]:
        out, ((keys, values),) = backend.attend(heads, backend.allocate(8), rows, None)
        return where_promised(out, rows).astype(jnp.float32), keys, values

    call = jax.jit(run).lower().compile()
    return lambda: np.concatenate([np.asarray(part, np.float32).ravel() for part in call()])


EVERY = pytest.mark.parametrize("make", [product, largest, attention])


@EVERY
def test_results_do_not_depend_on_the_number_of_threads(
    make: Callable[[int], Product], resize: Callable[[int], None]
) -> None:
    run = make(1)
    resize(1)
    alone = run()
    for size in (2, 4, 3, 1, 4, 2):
        resize(size)
        for _ in range(5):
            np.testing.assert_array_equal(run(), alone)


def test_a_pool_size_out_of_range_is_clamped(resize: Callable[[int], None]) -> None:
    run = product(1)
    resize(1)
    alone = run()
    for size in (0, -3):
        resize(size)
        np.testing.assert_array_equal(run(), alone)


def test_concurrent_callers_get_their_own_results(resize: Callable[[int], None]) -> None:
    runs = [product(1), product(5, rows=17), largest(9), attention(13)]
    alone = [run() for run in runs]
    resize(4)

    def caller(index: int) -> None:
        for _ in range(40):
            np.testing.assert_array_equal(runs[index % 4](), alone[index % 4])

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(caller, index) for index in range(6)]:
            done.result(timeout=120)


def test_the_pool_is_resized_during_calls(resize: Callable[[int], None]) -> None:
    """A member that wakes late must not take part in a region that is over, nor one come that no result is kept for."""
    runs = [largest(1), product(5, columns=320)]
    alone = [run() for run in runs]
    over = threading.Event()

    def caller(index: int) -> None:
        while not over.is_set():
            np.testing.assert_array_equal(runs[index](), alone[index])

    with ThreadPoolExecutor(2) as pool:
        callers = [pool.submit(caller, index) for index in range(2)]
        try:
            for step in range(500):
                resize(1 + step % 4)
                time.sleep(0.001)
        finally:
            over.set()
        for done in callers:
            done.result(timeout=120)


def test_idle_threads_sleep(resize: Callable[[int], None]) -> None:
    run = product(1)
    for size in (4, 2):
        resize(size)
        run()
        time.sleep(0.05)
        before_s = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before_s < 0.1


def test_a_pool_that_has_shrunk_grows_again(resize: Callable[[int], None]) -> None:
    """Threads that many regions have left out take part in the next that is for them."""
    run = product(1, rows=16, columns=112)
    resize(4)
    run()
    resize(2)
    alone = run()
    for _ in range(50):
        np.testing.assert_array_equal(run(), alone)
    resize(4)
    np.testing.assert_array_equal(run(), alone)


def built(name: str, folder: Path, *flags: str) -> str:
    """A program made of the source file of this name."""
    program, source = folder / name, Path(__file__).with_name(f"{name}.cc")
    include = f"-I{REPOSITORY / hatch_build.FOLDER}"
    command = [
        *shlex.split(str(COMPILER)),
        "-std=c++20",
        "-g",
        *flags,
        include,
        str(source),
        "-o",
        str(program),
        "-pthread",
    ]
    subprocess.run(command, check=True)
    return str(program)


def check(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@needs_compiler
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor")
def test_threads_leave_a_shared_processor(tmp_path: Path) -> None:
    """Two on one processor take twice as long, and the system may leave them there (docs/performance.md)."""
    one, other, *_ = sorted(os.sched_getaffinity(0))
    check(built("native_affinity", tmp_path), str(one), str(other))


@needs_compiler
def test_the_pool_adapts_its_size(tmp_path: Path) -> None:
    check(built("native_team_size", tmp_path))


@needs_compiler
def test_event_loops_are_yielded_to(tmp_path: Path) -> None:
    check(built("native_yielding", tmp_path))


@needs_compiler
def test_the_process_keeps_within_its_quota(tmp_path: Path) -> None:
    check(built("native_quota_pacer", tmp_path))


@needs_compiler
@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_piece_is_lost_when_threads_are_preempted(tmp_path: Path, count: int) -> None:
    """Random schedules, over a system that interrupts threads wherever they meet."""
    program = built("native_thread_pool", tmp_path, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover")
    check(program, "schedules", "1", str(count))


@needs_compiler
@pytest.mark.slow
def test_no_piece_is_lost_in_any_interleaving(tmp_path: Path) -> None:
    """All of them, up to a bound."""
    check(built("native_thread_pool", tmp_path, "-O1"), "interleavings")


@needs_compiler
def test_the_thread_pool_has_no_data_races(tmp_path: Path) -> None:
    helped = check(built("native_thread_pool_stress", tmp_path, "-O1", "-fsanitize=thread"), "3000", "0")
    assert int(helped) > 0
    check(built("native_thread_pool_stress", tmp_path, "-O1", "-fsanitize=address,undefined"), "3000", "1")


def test_affinity_masks_are_restored(resize: Callable[[int], None]) -> None:
    """Also where all must share one processor."""
    run = product(1)
    resize(4)
    alone, allowed = run(), os.sched_getaffinity(0)
    tasks = {int(task): os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")}
    one = {min(allowed)}
    try:
        for task in tasks:
            os.sched_setaffinity(task, one)
        for _ in range(20):
            np.testing.assert_array_equal(run(), alone)
        assert all(os.sched_getaffinity(task) == one for task in tasks)
    finally:
        for task, before in tasks.items():
            os.sched_setaffinity(task, before)
    for _ in range(20):
        np.testing.assert_array_equal(run(), alone)
    assert {task: os.sched_getaffinity(task) for task in tasks} == tasks


SPAWNED = """
import multiprocessing, sys
import jax.numpy as jnp
from asurge.ops import native
from asurge.ops.packed import pack, packed_linear

def total(seed):
    assert native.unavailable() is None
    weight = (jnp.arange(560 * 256).reshape(560, 256) % (7 + seed)).astype(jnp.bfloat16)
    return float(packed_linear(jnp.ones((64, 256), jnp.bfloat16), pack(weight)).astype(jnp.float32).sum())

if __name__ == "__main__":
    here = total(1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(total, [1]) == [here], here
    print("equal")
"""


def test_a_forked_process_has_a_pool_of_its_own(tmp_path: os.PathLike[str]) -> None:
    script = os.path.join(tmp_path, "spawned.py")
    with open(script, "w") as file:
        file.write(SPAWNED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path]), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "equal"


NICED = """
import os
from asurge.ops import native

os.nice(5)
assert native.unavailable() is None
native.set_threads(2)
names = {}
while "asurge-1" not in names:
    for task in os.listdir("/proc/self/task"):
        names[open(f"/proc/self/task/{task}/comm").read().strip()] = int(task)
print(os.getpriority(os.PRIO_PROCESS, names["asurge-1"]))
"""


def test_threads_have_the_niceness_of_their_process() -> None:
    """Also where it might make them less so."""
    assert check(sys.executable, "-c", NICED).strip() == "5"
