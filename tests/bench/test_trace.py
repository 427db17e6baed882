"""A timeline of steps: every stage of every step is seen, and told in files that others can read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asurge import Engine, SamplingParams
from asurge.bench.trace import StepTrace, check_trace, write_trace
from asurge.errors import BenchmarkError

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


async def traced(engine: Engine, params: SamplingParams) -> StepTrace:
    trace = StepTrace()
    engine.observe_steps(trace)
    try:
        await engine.generate(["one", "another"], params, use_tqdm=False)
    finally:
        engine.observe_steps(None)
    return trace


async def test_every_step_passes_its_stages_in_order(tiny: Engine) -> None:
    trace = await traced(tiny, GREEDY)
    ends: dict[int, dict[str, float]] = {}
    for span in trace.spans:
        assert span.begin_s <= span.end_s
        ends.setdefault(span.step_id, {})[span.stage] = span.end_s
    assert len(ends) >= 3
    for stages in ends.values():
        assert stages.keys() == {"plan", "dispatch", "device", "apply", "deliver"}
        assert stages["plan"] <= stages["dispatch"] <= stages["device"] <= stages["apply"] <= stages["deliver"]
    assert 0 < trace.device_share <= 1
    assert trace.host_ms > 0


def test_steps_that_seem_to_overlap_count_once() -> None:
    """A thread that hears late of a step's end says so late, and the next one has begun by then."""
    trace = StepTrace()
    assert trace.device_share == 0
    for step, (begin_s, end_s) in enumerate([(0.0, 1.0), (0.5, 1.5), (0.75, 1.25), (2.0, 3.0)]):
        trace.saw("device", step, begin_s, end_s)
    trace.saw("plan", 9, 0.0, 9.0)
    assert trace.device_share == pytest.approx(2.5 / 3)


async def test_sampling_apart_is_a_stage_of_their_own(tiny: Engine) -> None:
    trace = await traced(tiny, SamplingParams(max_tokens=4, logprobs=1))
    assert "sample" in {span.stage for span in trace.spans}


async def test_traces_are_written(tiny: Engine, tmp_path: Path) -> None:
    trace = await traced(tiny, GREEDY)
    write_trace(trace, tmp_path / "a.json")
    events = json.loads((tmp_path / "a.json").read_text())["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == len(trace.spans)
    assert min(event["ts"] for event in events if event["ph"] == "X") == 0
    write_trace(trace, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().count("<path") > len({span.stage for span in trace.spans})
    trace.clear()
    assert (trace.spans, trace.device_share, trace.host_ms) == ([], 0.0, 0.0)


def test_what_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="txt"):
        check_trace(tmp_path / "a.txt")
    with pytest.raises(BenchmarkError, match="folder"):
        check_trace(tmp_path / "nowhere" / "a.json")


async def test_compilations_while_serving_are_counted(tiny: Engine) -> None:
    import jax
    import jax.numpy as jnp

    before = tiny.get_metrics_summary()["compilations"]
    await tiny.generate(["one", "another"], GREEDY, use_tqdm=False)
    assert tiny.get_metrics_summary()["compilations"] == before
    jax.jit(lambda x: jnp.sin(x) * 17.25 + before)(jnp.arange(7.0)).block_until_ready()
    assert tiny.get_metrics_summary()["compilations"] > before
