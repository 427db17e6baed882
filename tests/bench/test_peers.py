"""The comparison with other engines, over engines that are made up."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asurge.bench.metrics import summarize
from asurge.bench.workloads import named_workload
from benchmarks import peers
from benchmarks.peer_jobs import protocol
from benchmarks.stalls import StallWatch, undisturbed

TASK = peers.Task("somewhere", 100, ["w1", "w6"], 7)


@dataclasses.dataclass
class Made:
    name: str
    reason: str | None = None
    breaks: bool = False
    seeds: list[int] = dataclasses.field(default_factory=list)

    def missing(self) -> str | None:
        return self.reason

    def run(self, task: peers.Task) -> dict[str, Any]:
        self.seeds.append(task.seed)
        if self.breaks:
            raise RuntimeError("out of memory")
        share = {"mean": 1.0, "p50": 1.0, "p90": 1.0, "p99": 1.0, "max": 1.0}
        metrics = {"duration_s": float(len(self.seeds)), "output_tokens_per_s": 10.0 + len(self.seeds), "ttft_ms": share, "tpot_ms": share, "itl_ms": None}  # fmt: skip
        return {"start_s": 1.0, "peak_resident_bytes": 1 << 20, "workloads": dict.fromkeys(task.workloads, metrics)}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "measure_bandwidth", lambda: 25e9)


def test_engines_take_turns_and_who_fails_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    ours, other = Made("asurge"), Made("other")
    absent, broken = Made("absent", "nowhere: pip install it"), Made("broken", breaks=True)
    result = peers.compare([ours, other, absent, broken], TASK, repeat=3)
    assert ours.seeds == other.seeds == [7, 100_007, 200_007]
    assert len(broken.seeds) == 1
    assert result["left_out"] == {"absent": "nowhere: pip install it", "broken": "failed: out of memory"}
    found = result["engines"]["asurge"]["workloads"]["w1"]
    assert (found["duration_s"], found["output_tokens_per_s"]) == (2.0, 12.0)
    assert found["output_tokens_per_s_of_each_turn"] == [11.0, 12.0, 13.0]
    assert "absent is left out: nowhere" in capsys.readouterr().err
    json.dumps(result)
    screen = io.StringIO()
    Console(file=screen, width=140).print(peers.table_of(result))
    assert screen.getvalue().count("other") == 2


def test_what_is_missing_is_said() -> None:
    here = peers.Script("json", sys.executable, "json", "json")
    assert here.missing() is None
    assert "pip install it" in str(peers.Script("x", sys.executable, "no_such_module", "it").missing())
    assert "cannot be run" in str(peers.Script("x", "/no/such/python", "json", "it").missing())
    assert "export one" in str(peers.Script("x", sys.executable, "json", "it", model="").missing())
    assert "no program" in str(peers.Server("x", "no-such-program --port {port}").missing())


def test_others_compute_in_each_type_that_is_asked_for() -> None:
    given = argparse.Namespace(
        model="folder",
        set=[],
        python_transformers="a",
        python_vllm="b",
        python_openvino="",
        openvino_model=None,
        dtypes=["bfloat16", "float32"],
        server=[],
    )
    scripts = [peer for peer in peers.chosen(given) if isinstance(peer, peers.Script)]
    assert [(script.name, script.python, script.dtype) for script in scripts] == [
        ("transformers", "a", "bfloat16"),
        ("vLLM", "b", "bfloat16"),
        ("transformers, float32", "a", "float32"),
        ("vLLM, float32", "b", "float32"),
    ]


def test_a_gguf_file_is_given_to_llama_cpp_too() -> None:
    given = argparse.Namespace(model="x.gguf", set=[], python_llama="c", workloads=["w1", "w4"], server=[])
    _, _, plain, flash = peers.chosen(given)
    assert isinstance(plain, peers.Script)
    assert isinstance(flash, peers.Script)
    assert (plain.job, plain.options["flash"], flash.options["flash"]) == ("llamacpp", False, True)
    assert plain.options["context_len"] >= 2048 + 16
    given.python_llama = ""
    assert len(peers.chosen(given)) == 2


def test_every_work_comes_behind_its_warm_up() -> None:
    workloads = peers._prompted(TASK)
    assert [workload["name"] for workload in workloads] == ["_w1", "w1", "_w6", "w6"]
    assert workloads[1]["rounds"] == named_workload("w1").prompts(100, 7)
    assert len(workloads[3]["rounds"][0]) == workloads[3]["at_once"] == 8


class Steps:
    """A stepped engine that gives each request a token a step."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.most = 0

    def add(self, name: str, prompt: list[int], output_len: int) -> None:
        self.left[name] = output_len

    def step(self) -> list[tuple[str, int, bool]]:
        self.most = max(self.most, len(self.left))
        self.left = {name: left - 1 for name, left in self.left.items()}
        news = [(name, 1, left == 0) for name, left in self.left.items()]
        self.left = {name: left for name, left in self.left.items() if left}
        return news


WORKLOAD: dict[str, Any] = {"name": "x", "output_len": 3, "at_once": 2, "rounds": [[[1, 2]] * 5]}


def test_records_of_a_stepped_engine() -> None:
    engine = Steps()
    records = protocol._steps(engine, WORKLOAD["rounds"][0], WORKLOAD, 0)
    assert engine.most == 2
    load = peers.load_of({"records": records, "rounds_s": [(0.0, 1.0)]})
    assert summarize(load, 3).output_tokens == 15
    assert all(record.latency_s >= (record.first_token_s or 0.0) > 0 for record in load.records)


def test_records_of_static_batches() -> None:
    sizes = []

    def complete(prompts: list[list[int]], output_len: int, note: Any) -> None:
        sizes.append(len(prompts))
        for _ in range(output_len):
            note()

    records = protocol._batches(complete, WORKLOAD["rounds"][0], WORKLOAD, 64)
    assert sizes == [2, 2, 1]
    assert [len(record["deliveries"]) for record in records] == [3] * 5
    assert records[0]["sent_s"] < records[2]["sent_s"]
    waited = protocol._batches(complete, WORKLOAD["rounds"][0], {**WORKLOAD, "at_once": 5}, 2)
    assert len({record["sent_s"] for record in waited}) == 1  # all were open from the start


def test_every_job_has_its_file() -> None:
    for module in ("transformers", "vllm", "openvino"):
        assert (Path(peers.JOBS) / f"{module}_job.py").is_file()


class Still:
    """A watch that tells the given stalls, one after another."""

    def __init__(self, stalls_s: list[float]) -> None:
        self.left = iter(stalls_s)
        self.longest_s = 0.0

    def __enter__(self) -> Still:
        self.longest_s = next(self.left)
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_a_run_is_taken_again_when_the_machine_stood_still() -> None:
    results, stalls_s = iter("abcd"), []
    watch = Still([9.0, 40.0, 0.01])
    assert undisturbed(lambda: next(results), stalls_s, lambda: watch) == "c"  # type: ignore[arg-type,return-value]
    assert stalls_s == [9.0, 40.0]
    watch = Still([1.0] * 4)
    results = iter("abcd")
    assert undisturbed(lambda: next(results), stalls_s, lambda: watch) == "d"  # type: ignore[arg-type,return-value]


def test_the_watch_notes_how_late_it_wakes() -> None:
    late, now_s = threading.Event(), [0.0]

    def wait(span_s: float) -> None:
        now_s[0] += span_s if late.is_set() else 7.05
        late.set()
        time.sleep(0.001)

    with StallWatch(lambda: now_s[0], wait) as watch:
        late.wait(5)
        time.sleep(0.01)
    assert watch.longest_s == pytest.approx(7.0)
