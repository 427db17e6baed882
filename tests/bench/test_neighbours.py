"""Engines beside other work: turns, figures, tables."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from asurge.errors import ConfigError
from benchmarks import neighbours
from benchmarks.beside import figures, quota, scheduler_view, sessions
from benchmarks.beside.neighbours import Neighbour, known_neighbours


def cell(turn: int, engine: str, neighbour: str, speed: float, **more: Any) -> dict[str, Any]:
    share = {"mean": 1.0, "p50": 1000 / speed, "p90": 3.0, "p99": 3000 / speed, "max": 5.0} if speed else None
    metrics = {"duration_s": 2.0, "output_tokens_per_s": speed, "ttft_ms": share, "tpot_ms": share, "itl_ms": share}
    return {
        "turn": turn, "workload": "w1", "engine": engine, "neighbour": neighbour, "metrics": metrics if speed else None, "event_loop_lag_ms": {"p99": 7.0},
        "seconds": 2.0, "scheduler": dataclasses.asdict(scheduler_view.Share(3.0, 1.0, 100, 40, 60)), "neighbour_cpu_s": 0.5, "processors_elsewhere": 0.02, **more,
    }  # fmt: skip


def document(turns: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    return figures.document_of(
        turns, model="S", repeat=3, machine={"cores": 2}, left_out={}, engines=names, neighbours=list(known_neighbours()), workloads=["w1"]
    )  # fmt: skip


def found(result: dict[str, Any], engine: str, neighbour: str) -> dict[str, Any]:
    return next(one for one in result["cells"] if (one["engine"], one["neighbour"]) == (engine, neighbour))


def test_ratios_are_within_a_turn() -> None:
    turns = [cell(at, "a", "none", speed) for at, speed in enumerate((100.0, 50.0, 80.0))]
    turns += [cell(at, "a", "niced", speed) for at, speed in enumerate((50.0, 25.0, 10.0))]
    turns += [cell(at, "b", "niced", 5.0) for at in (0, 2)]  # and turns of which one has no counterpart
    result = document(turns, ["a", "b"])
    niced = found(result, "a", "niced")
    assert niced["times_slower_than_alone"] == {"median": 2.0, "least": 2.0, "most": 8.0}
    assert niced["times_as_fast_as"] == {"b": {"median": 6.0, "least": 2.0, "most": 10.0}}
    assert found(result, "b", "niced")["times_slower_than_alone"] is None
    assert niced["figures"]["output_tokens_per_s"] == 25.0
    assert niced["figures"]["processors_used"] == 1.5
    assert niced["figures"]["processors_waited_for"] == 0.5
    assert niced["figures"]["involuntary_switches_per_s"] == 30.0
    json.dumps(result)


def test_a_measurement_without_a_token_is_no_ratio() -> None:
    result = document([cell(0, "a", "none", 100.0), cell(0, "a", "two-busy", 0.0)], ["a"])
    beside = found(result, "a", "two-busy")
    assert beside["times_slower_than_alone"] is None
    assert (beside["figures"]["output_tokens_per_s"], beside["figures"]["itl_p99_ms"]) == (0.0, None)


def test_an_application_leaves_a_share_of_the_processors() -> None:
    app = {"app": {"busy_share": 0.5, "turns_per_s": 90.0}, "app_alone": {"event_loop_lag_ms": {"p99": 6.0}, "turns_per_s": 100.0}}  # fmt: skip
    result = document([cell(0, "a", "none", 100.0), cell(0, "a", "app", 60.0, **app)], ["a"])
    assert found(result, "a", "app")["app"] == {
        "of_what_is_left": pytest.approx(0.8),
        "left_share": 0.75,
        "lag_p99_ms": 7.0,
        "lag_p99_without_engine_ms": 6.0,
        "turns_kept": 0.9,
    }


def test_tables() -> None:
    app = {"app": {"busy_share": 0.5, "turns_per_s": 90.0}, "app_alone": {"event_loop_lag_ms": None, "turns_per_s": 100.0}}  # fmt: skip
    speeds = {"none": 100.0, "one-core": 80.0, "quota-1": 64.0, "app": 60.0, "two-busy": 0.0}
    turns = [
        cell(0, engine, name, speed, **(app if name == "app" else {}))
        for engine in "ab"
        for name, speed in speeds.items()
    ]
    result = {**document(turns, ["a", "b"]), "left_out": {"c": "no such [thing]"}}
    screen = io.StringIO()
    figures.print_tables(result, Console(file=screen, width=150))
    text = screen.getvalue()
    assert "c is left out: no such [thing]" in text
    assert [title in text for title in ("medians of 3", "Times as fast", "A quota", "An application")] == [True] * 4
    columns = [list(column.cells) for column in figures.quota_table(result).columns]
    assert columns == [["w1", "w1"], ["a", "b"], ["1.25", "1.25"], ["3.00", "3.00"]]


class Made:
    """An engine and its session in one."""

    hosts_app = False

    def __init__(self, name: str, reason: str | None = None, breaks: bool = False) -> None:
        self.name, self._reason, self._breaks = name, reason, breaks
        self.asked: list[tuple[str, int]] = []
        self.placements: list[sessions.Placement] = []
        self.open = 0

    def missing(self) -> str | None:
        return self._reason

    @contextmanager
    def started(self, placement: sessions.Placement) -> Iterator[Made]:
        self.placements.append(placement)
        self.open += 1
        try:
            yield self
        finally:
            self.open -= 1

    def processes(self) -> list[int]:
        return []

    def measure(self, order: sessions.Order) -> dict[str, Any]:
        if self._breaks:
            raise RuntimeError("out of memory")
        self.asked.append((order.workload.name, order.seed))
        return {key: value for key, value in cell(0, "", "", 50.0).items() if key in ("metrics", "event_loop_lag_ms")}


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "machine_busy_s", lambda: 0.0)


def task(*names: str, repeat: int = 2) -> neighbours.Task:
    there = [known_neighbours()[name] for name in names]
    return neighbours.Task("S", 100, ["w1", "w6"], there, repeat, 7, limit_s=5.0, quiet=0.1)


def test_engines_are_measured_in_turns_with_new_prompts(quiet: None) -> None:
    one, other = Made("one"), Made("other")
    result = neighbours.run_neighbours([one, other], task("none", "one-busy"))
    assert one.asked == other.asked  # the same prompts for both, none twice
    assert len({seed for _, seed in one.asked}) == len(one.asked) == 2 * 2 * 2 * 2
    order = [(found["turn"], found["neighbour"], found["engine"]) for found in result["measurements"]][::2]
    assert order == [
        (0, "none", "one"), (0, "none", "other"), (0, "one-busy", "one"), (0, "one-busy", "other"),
        (1, "none", "other"), (1, "none", "one"), (1, "one-busy", "other"), (1, "one-busy", "one"),
    ]  # fmt: skip
    assert one.open == other.open == 0
    assert len(one.placements) == 1
    json.dumps(result)


def test_who_fails_or_is_missing_is_left_out_and_named(
    quiet: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(processors: float) -> Any:
        raise quota.NoQuotaError("not to be written")

    monkeypatch.setattr(quota, "quota", refuse)
    fine, absent, broken = Made("fine"), Made("absent", "pip install it"), Made("broken", breaks=True)
    result = neighbours.run_neighbours([fine, absent, broken], task("none", "quota-1", "one-core", "app", repeat=1))
    assert {found["neighbour"] for found in result["measurements"]} == {"none", "one-core"}
    assert {found["engine"] for found in result["measurements"]} == {"fine"}
    assert set(result["left_out"]) == {"absent", "quota-1", "broken, free", "broken, one-core"}
    assert "out of memory" in result["left_out"]["broken, free"]
    assert [placement.cpus for placement in fine.placements] == [(), (max(os.sched_getaffinity(0)),)]
    assert fine.open == broken.open == 0
    assert "quota-1 is left out: not to be written" in capsys.readouterr().err


def test_the_quietest_of_some_tries_counts() -> None:
    def tries(*shares: float) -> tuple[dict[str, Any], list[float]]:
        left = list(shares)
        return neighbours._quietest(lambda: {"processors_elsewhere": left.pop(0)}, 0.1), left

    assert tries(0.05, 0.0) == ({"processors_elsewhere": 0.05, "tries": 1}, [0.0])
    assert tries(0.5, 0.1, 0.0) == ({"processors_elsewhere": 0.1, "tries": 2}, [0.0])
    assert tries(0.5, 0.3, 0.4) == ({"processors_elsewhere": 0.3, "tries": 3}, [])


def test_time_that_nobody_here_used_was_used_elsewhere() -> None:
    threads = [{1: scheduler_view.Share(cpu_s=at)} for at in (1.0, 4.0)]
    before = neighbours._Look(10.0, threads[0], {}, 0.0, 100.0, {"throttled_s": 1.0})
    after = neighbours._Look(12.0, threads[1], {5: scheduler_view.Share(cpu_s=0.25)}, 0.25, 104.0, {"throttled_s": 1.5})
    assert neighbours._Look.between(before, after) == {
        "seconds": 2.0,
        "scheduler": dataclasses.asdict(scheduler_view.Share(cpu_s=3.0)),
        "neighbour_cpu_s": 0.25,
        "processors_elsewhere": 0.25,
        "throttled": {"throttled_s": 0.5},
    }


def test_options(tmp_path: Path) -> None:
    assert [one.name for one in neighbours.parse_neighbours("niced,none,niced")] == ["niced", "none"]
    with pytest.raises(ConfigError, match="no neighbour 'loud'"):
        neighbours.parse_neighbours("none,loud")
    given = neighbours.parser().parse_args(
        ["--model", "S", "--workloads", "w1,w2", "--of", "quantization=int8", "--llama", "python", "--gguf", "x", "--llama-threads", "1", "2", "--vllm", "python", "--server", "x=y --port {port}"]
    )  # fmt: skip
    names = [engine.name for engine in neighbours.chosen(given)]
    assert names == ["asurge", "asurge quantization=int8", "llama.cpp, 1 threads", "llama.cpp, 2 threads", "asurge served", "vLLM served", "x"]  # fmt: skip
    given.only = "served,int8"
    assert [engine.name for engine in neighbours.chosen(given)] == [names[1], *names[4:6]]
    with pytest.raises(SystemExit, match="no file"):
        neighbours.main(["--model", str(tmp_path), "--llama", "python"])


def test_what_is_known_as_a_neighbour() -> None:
    known = known_neighbours()
    assert known["niced"] == Neighbour("niced", known["two-busy"].programs, nice=10)
    assert len(known["two-busy"].programs) == len(os.sched_getaffinity(0))
