"""``asurge bench``, and the client in process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from asurge import Engine
from asurge.bench.engine_client import EngineClient
from asurge.bench.measure import Surroundings, measure
from asurge.bench.plot import plot
from asurge.bench.report import describe_workload, tables
from asurge.bench.roofline import read_footprint, roofline
from asurge.bench.workloads import WORKLOADS, Workload
from asurge.cli.main import main
from asurge.errors import BenchmarkError

WORKLOAD = Workload(name="test", requests=3, input_len=20, output_len=6, shared_prefix=16, rounds=2, concurrency=2)


async def test_a_work_in_process(tiny: Engine, tiny_folder: Path, tmp_path: Path) -> None:
    measured = await measure(EngineClient(tiny), WORKLOAD, vocab_size=400, limits_ms={"ttft": 1e6})
    metrics = measured.metrics
    assert (metrics.completed, metrics.failed, metrics.short) == (6, 0, 0)
    assert metrics.output_tokens == 36
    assert metrics.cached_tokens > 0  # what the prompts of a round share
    assert metrics.goodput_per_s == metrics.requests_per_s
    assert measured.lag_ms is None or measured.lag_ms.max < 60_000
    plot(measured, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 10_000
    floor = roofline(read_footprint(tiny_folder, tiny.config), WORKLOAD, max_num_seqs=4, bandwidth=1e9, tpot_ms=1.0)
    screen = io.StringIO()
    for table in tables(measured, Surroundings(1.0, 1 << 30, 0, floor)):
        Console(file=screen, width=120).print(table)
    for words in ("TTFT", "a whole round", "compilations while serving", "prompt tokens from the cache", "GB/s"):
        assert words in screen.getvalue()


async def test_answers_taken_at_their_ends(tiny: Engine) -> None:
    metrics = (await measure(EngineClient(tiny, whole=True), WORKLOAD, vocab_size=400)).metrics
    assert (metrics.completed, metrics.output_tokens) == (6, 36)
    assert metrics.tokens_per_delivery is not None
    assert metrics.tokens_per_delivery.max == metrics.tokens_per_delivery.mean == 6
    assert metrics.tpot_ms is metrics.itl_ms is None
    assert metrics.ttft_ms is not None


async def test_a_refused_request_is_noted(tiny: Engine) -> None:
    with pytest.raises(BenchmarkError, match="all 1 requests failed: prompt holds the token id"):
        await measure(
            EngineClient(tiny), Workload(name="x", requests=1, input_len=4, output_len=2), vocab_size=10**9 + 1
        )


def test_the_command(tiny_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    command = [
        *(sys.executable, "-m", "asurge.cli.main", "bench", "throughput", "--model", str(tiny_folder)),
        *("--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "4", "--no-roofline"),
        *("--num-prompts", "4", "--input-len", "16", "--output-len", "8", "--concurrency", "2"),
        *("--goodput", "ttft:60000", "--json", str(target), "--plot", str(tmp_path / "picture.svg")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "output tokens" in done.stdout
    document = json.loads(target.read_text())
    assert document["command"] == "bench throughput"
    assert document["metrics"]["output_tokens"] == 32
    assert document["workload"]["concurrency"] == 2
    assert document["settings"]["max_num_seqs"] == 4
    assert document["compilations"] == 0
    assert document["roofline"] is None
    assert (tmp_path / "picture.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["latency", "--batch-size", "0"], "requests=0"),
        (["latency", "--goodput", "ttft"], "ttft:500"),
        (["throughput", "--shared-prefix", "500"], "shared_prefix=500"),
        (["throughput", "--json", "/nowhere/at/all.json"], "its folder does not exist"),
        (["throughput", "--plot", "picture.txt"], "not 'picture.txt'"),
        (["serve", "--request-rate", "-1"], "rate=-1.0"),
        (["serve", "--vocab-size", "0"], "vocab_size=0"),
    ],
)
def test_what_can_be_refused_is_refused_first(
    arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("asurge: error: ")
    assert message in shown


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["bench", "latency", "--plot", "x.png"]) == 2
    assert "pip install asurge[bench]" in capsys.readouterr().err


async def test_a_missing_http_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from asurge.bench.http_client import HttpClient

    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(BenchmarkError, match=r"pip install asurge\[server\]"):
        await HttpClient("http://127.0.0.1:1").__aenter__()


def test_workloads_in_words() -> None:
    assert describe_workload(WORKLOADS["w1"]) == "w1: 5 x 1 requests, 1 at a time, 128 tokens in, 128 out"
    assert describe_workload(WORKLOADS["w3"]).endswith("544 tokens in, 512 of them shared, 32 out")
