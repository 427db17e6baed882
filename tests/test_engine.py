"""The engine as its users see it, over a tiny random model."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anyio import to_thread

from asurge import Engine, RequestOutput, SamplingParams
from asurge.config import EngineConfig, SchedulerConfig
from asurge.errors import (
    ChatTemplateError,
    ConfigError,
    DuplicateRequestError,
    EngineDeadError,
    EngineNotRunningError,
    EngineStateError,
    InvalidRequestError,
    ModelLoadError,
    PromptTooLongError,
)
from asurge.pipeline import Generation, Pipeline
from asurge.scheduler import Request, Scheduler
from tests.conftest import PAGE_BYTES, TINY
from tests.idle import assert_idle, settle

GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


async def collect(engine: Engine, prompt: Any, params: SamplingParams = GREEDY) -> list[RequestOutput]:
    return [output async for output in engine.stream(prompt, params)]


# ── results ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_adds_up_and_ends_once(tiny: Engine) -> None:
    outputs = await collect(tiny, "The quick brown fox")
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    last = outputs[-1]
    assert "".join(output.delta_text for output in outputs) == last.accumulated_text == last.outputs[0].text
    assert (last.num_generated_tokens, last.finish_reason) == (20, "length")
    assert last.first_token_time is not None
    assert 0 < last.first_token_time <= last.processing_time
    assert last.get_summary()["num_prompt_tokens"] == len(last.prompt_token_ids)


async def test_generate_keeps_the_order_and_equals_streaming(tiny: Engine) -> None:
    prompts = [f"Prompt number {n}" * (1 + n % 4) for n in range(12)]
    outputs = await tiny.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == prompts
    for prompt, output in zip(prompts, outputs, strict=True):
        assert (await collect(tiny, prompt))[-1].get_text() == output.get_text()
    await settle(tiny)


async def test_a_batch_may_have_more_prompts_than_the_queue_has_places(tiny_folder: Path, tiny: Engine) -> None:
    prompts = [f"Prompt number {n}" for n in range(12)]
    async with Engine(str(tiny_folder), **TINY, max_queued_requests=3) as small:
        outputs = await small.generate(prompts, GREEDY, use_tqdm=False)
        pairs = await small.generate(prompts, dataclasses.replace(GREEDY, n=2), use_tqdm=False)
        vectors = await small.embed(prompts, use_tqdm=False)
        await settle(small)
    expected = await tiny.generate(prompts, GREEDY, use_tqdm=False)
    assert [one.outputs for one in outputs] == [one.outputs for one in expected]
    assert [one.get_text() for one in pairs] == [one.get_text() for one in expected]
    assert [one.prompt for one in vectors] == prompts


async def test_text_and_token_ids_are_the_same_prompt(tiny: Engine) -> None:
    (by_text,) = await tiny.generate("Schöne Grüße", GREEDY, use_tqdm=False)
    (by_ids,) = await tiny.generate(by_text.prompt_token_ids, GREEDY, use_tqdm=False)
    assert by_ids.outputs == by_text.outputs
    assert by_ids.prompt is None


async def test_an_array_of_token_ids_is_a_prompt_as_a_list_is(tiny: Engine) -> None:
    (expected,) = await tiny.generate([5, 6, 7], GREEDY, use_tqdm=False)
    array = np.array([5, 6, 7])
    for prompts, count in (
        (array, 1),
        (list(array), 1),
        ([array], 1),
        ([array, [5, 6, 7]], 2),
        (np.stack([array] * 2), 2),
    ):
        outputs = await tiny.generate(prompts, GREEDY, use_tqdm=False)
        assert [one.outputs for one in outputs] == [expected.outputs] * count
        assert len(await tiny.embed(prompts, use_tqdm=False)) == count
    assert (await collect(tiny, array))[-1].outputs == expected.outputs


async def test_a_seed_gives_the_same_tokens_in_any_batch(tiny: Engine) -> None:
    params = SamplingParams(max_tokens=16, temperature=1.5, top_p=0.9, seed=11, ignore_eos=True)
    alone = (await collect(tiny, "Once upon a time", params))[-1]
    other = SamplingParams(max_tokens=16, temperature=2.0, ignore_eos=True)
    crowd = await tiny.generate(
        ["Once upon a time", "x", "y", "z", "Once upon a time"], [params, other, GREEDY, other, params], use_tqdm=False
    )
    assert crowd[0].outputs[0].token_ids == crowd[4].outputs[0].token_ids == alone.outputs[0].token_ids


async def test_a_warm_prefix_cache_changes_nothing(tiny: Engine) -> None:
    prompt = "A prefix that fills several pages of eight tokens each, and then some more of it."
    cold, warm = [(await collect(tiny, prompt))[-1] for _ in range(2)]
    assert warm.num_cached_tokens >= 8
    assert warm.outputs == cold.outputs


async def test_preemption_changes_nothing(tiny_folder: Path, tiny: Engine) -> None:
    """A pool that holds one long sequence: four at once must take turns."""
    async with Engine(str(tiny_folder), **TINY, kv_cache_bytes=17 * PAGE_BYTES, enable_prefix_caching=False) as small:
        prompts = [f"{n} prompts of some length" for n in range(4)]
        params = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
        outputs = await small.generate(prompts, params, use_tqdm=False)
        assert small.statistics().preemptions > 0
        await settle(small)
    expected = await tiny.generate(prompts, params, use_tqdm=False)
    assert [one.outputs for one in outputs] == [one.outputs for one in expected]


async def test_with_int8_pages_texts_do_not_depend_on_the_batch(tiny_folder: Path) -> None:
    """Whoever is preempted computes its keys and values again, beside others, and gets the same."""
    page = 2 * 2 * 2 * 8 * (8 + 4)  # layers, keys and values, heads, page, head size and scale
    async with Engine(str(tiny_folder), **TINY, kv_cache_bytes=17 * page, kv_cache_dtype="int8") as small:
        assert small.statistics().pages_total == 16
        prompts = [f"{n} prompts of some length" for n in range(4)]
        params = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
        together = await small.generate(prompts, params, use_tqdm=False)
        assert small.statistics().preemptions > 0
        alone = [(await collect(small, prompt, params))[-1] for prompt in prompts]
        await settle(small)
    assert [one.outputs for one in together] == [one.outputs for one in alone]


async def test_stop_strings_and_stop_tokens(tiny: Engine) -> None:
    whole = (await collect(tiny, "Stop here"))[-1]
    stop = whole.get_text()[7:10]
    params = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True, stop=stop)
    outputs = await collect(tiny, "Stop here", params)
    assert outputs[-1].get_text() == whole.get_text()[: whole.get_text().index(stop)]
    assert (outputs[-1].finish_reason, outputs[-1].outputs[0].stop_reason) == ("stop", stop)
    token = whole.outputs[0].token_ids[4]
    params = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True, stop_token_ids=[token])
    last = (await collect(tiny, "Stop here", params))[-1]
    assert (last.finish_reason, last.outputs[0].stop_reason) == ("stop", token)
    assert last.outputs[0].token_ids == whole.outputs[0].token_ids[: last.num_generated_tokens]
    await settle(tiny)


async def test_output_kinds(tiny: Engine) -> None:
    def params(kind: Any) -> SamplingParams:
        return SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True, output_kind=kind)

    deltas = await collect(tiny, "Kinds", params("delta"))
    finals = await collect(tiny, "Kinds", params("final"))
    assert len(finals) == 1
    assert "".join(output.outputs[0].text for output in deltas) == finals[0].get_text()
    assert [token for output in deltas for token in output.outputs[0].token_ids] == finals[0].outputs[0].token_ids


@pytest.mark.parametrize("kind", ["cumulative", "delta", "final"])
async def test_wait_finished_returns_the_whole_output(tiny: Engine, kind: Any) -> None:
    params = dataclasses.replace(GREEDY, output_kind=kind)
    expected = (await collect(tiny, "Kinds"))[-1]
    for output in (
        await tiny.stream("Kinds", params).wait_finished(),
        *await tiny.generate(["Kinds"], params, use_tqdm=False),
    ):
        assert output.outputs == expected.outputs
        assert output.get_text() == output.delta_text == expected.get_text()
        assert output.first_token_time is not None


async def test_the_scheduler_knows_streaming_readers(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are short for them alone."""
    submit, told = Pipeline.submit, list[bool]()

    def spy(pipeline: Pipeline, generation: Generation, requests: Sequence[Request], *more: Any) -> None:
        told.extend(request.streamed for request in requests)
        submit(pipeline, generation, requests, *more)

    monkeypatch.setattr(Pipeline, "submit", spy)
    best = dataclasses.replace(GREEDY, n=1, best_of=2)
    for params, whole in ((GREEDY, False), (GREEDY, True), (best, False)):
        await (tiny.stream("Kinds", params).wait_finished() if whole else collect(tiny, "Kinds", params))
    assert told == [True, False, False, False]


async def test_chat_continues_the_final_message(tiny: Engine) -> None:
    ask: dict[str, str] = {"role": "user", "content": "Hi"}
    whole = await tiny.chat([ask], GREEDY)
    begun = whole.get_text()[:9]
    rest = await tiny.chat([ask, {"role": "assistant", "content": begun}], GREEDY, continue_final_message=True)
    assert rest.prompt_token_ids == tiny.tokenizer.encode(
        f"<s>user: Hi\n<s>assistant: {begun}", add_special_tokens=False
    )
    with pytest.raises(InvalidRequestError, match=r"unknown option continue_last: .*continue_final_message.*priority"):
        await tiny.chat([ask], GREEDY, continue_last=True)  # type: ignore[call-overload]
    bare = await tiny.chat([ask], GREEDY, add_generation_prompt=False)
    assert bare.prompt_token_ids == tiny.tokenizer.encode("<s>user: Hi\n", add_special_tokens=False)


async def test_chat_renders_and_streams(tiny: Engine) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    whole = await tiny.chat(messages, GREEDY)
    assert whole.prompt == "<s>user: Hello\n<s>assistant: "
    stream = await tiny.chat(messages, GREEDY, stream=True)
    assert [output async for output in stream][-1].outputs == whole.outputs


# ── ending early ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("outputs_read", [0, 1, 5])
@pytest.mark.parametrize("how", ["aclose", "context", "drop", "cancel", "abort"])
async def test_leaving_a_stream_frees_its_pages(tiny: Engine, how: str, outputs_read: int) -> None:
    params = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)
    stream = tiny.stream("A stream that is left early", params)
    async with stream if how == "context" else asyncio.timeout(60):
        for _ in range(outputs_read):
            assert not (await anext(stream)).finished
        if how == "cancel":
            task = asyncio.ensure_future(stream.wait_finished())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        elif how == "abort":
            admitted = tiny.abort_request(stream.request_id)
            assert admitted == (outputs_read > 0)
            if admitted:
                assert (await stream.wait_finished()).finish_reason == "abort"
        elif how == "aclose":
            await stream.aclose()
            assert [output async for output in stream] == []
    if how == "drop":
        del stream
        gc.collect()
        await asyncio.sleep(0)
    await settle(tiny)


async def test_a_failing_prompt_of_a_batch_ends_the_others(tiny: Engine) -> None:
    with pytest.raises(InvalidRequestError, match="prompt is empty"):
        await tiny.generate(["fine", "", "also fine"], SamplingParams(max_tokens=100, ignore_eos=True), use_tqdm=False)
    await settle(tiny)


# ── refusals ────────────────────────────────────────────────────────────────────────────────────


def test_max_new_tokens_is_an_alias() -> None:
    assert SamplingParams(max_new_tokens=7).max_tokens == 7


@pytest.mark.parametrize(
    "prompt",
    ["", "\ud800", [], [400], [-1], [True], ["a"], [2**70], b"abc", None, 5, {5: 6}, {5}, np.array(5), np.array([5.0])],
)
async def test_bad_prompts_are_refused(tiny: Engine, prompt: Any) -> None:
    with pytest.raises(InvalidRequestError, match="prompt"):
        await anext(tiny.stream(prompt, GREEDY))
    with pytest.raises(InvalidRequestError, match="prompt"):
        await tiny.beam_search(prompt)
    assert_idle(tiny.statistics())


@pytest.mark.parametrize("prompts", [b"abc", None, [None], [b"abc"], {"a": "b"}, (text for text in "ab"), 0.5])
async def test_prompts_of_other_types_are_refused(tiny: Engine, prompts: Any) -> None:
    for work in (tiny.generate, tiny.embed):
        with pytest.raises(InvalidRequestError, match="must be a text"):
            await work(prompts, use_tqdm=False)
    assert_idle(tiny.statistics())


async def test_duplicate_ids_are_refused_while_the_first_runs(tiny: Engine) -> None:
    params = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)
    async with tiny.stream("one", params, request_id="same") as first:
        with pytest.raises(DuplicateRequestError, match="'same' is still running"):
            await anext(tiny.stream("two", params, request_id="same"))
        assert not (await anext(first)).finished  # untouched
    assert (await tiny.stream("three", GREEDY, request_id="same").wait_finished()).finished


async def test_late_updates_do_not_reach_a_later_request_with_the_same_id(
    tiny: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, add = list[str](), Scheduler.add

    def noted(scheduler: Scheduler, request: Request) -> None:
        names.append(request.sequence_id)
        add(scheduler, request)

    monkeypatch.setattr(Scheduler, "add", noted)
    for _ in range(2):
        await tiny.stream("x", dataclasses.replace(GREEDY, n=2, temperature=1.0), request_id="same").wait_finished()
    assert len(set(names)) == len(names) == 4


async def test_closing_a_stream_leaves_a_later_one_with_the_same_id_alone(tiny: Engine) -> None:
    unread = tiny.stream("one", GREEDY, request_id="same")
    await anext(unread)
    await collect(tiny, "as long, and begun later")
    async with tiny.stream("two", GREEDY, request_id="same") as later:
        await unread.aclose()
        assert (await later.wait_finished()).finish_reason == "length"


@pytest.mark.parametrize("how", ["aclose", "abort_request"])
async def test_a_stream_may_be_ended_while_its_prompt_is_prepared(tiny: Engine, how: str) -> None:
    stream = tiny.stream("word " * 2000, GREEDY, request_id="early")  # long enough for a worker thread
    reading = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    if how == "aclose":
        await stream.aclose()
    else:
        assert tiny.abort_request("early")
    output = await reading
    assert (output.finished, output.finish_reason) == (True, "abort")
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    await settle(tiny)


async def test_a_stream_that_was_only_entered_can_be_taken_whole(tiny: Engine) -> None:
    params = dataclasses.replace(GREEDY, output_kind="delta")
    async with tiny.stream("whole", params) as stream:
        await collect(tiny, "begun later")
        output = await stream.wait_finished()
    assert len(output.outputs[0].token_ids) == GREEDY.max_tokens


async def test_lists_of_the_wrong_length_are_refused(tiny: Engine) -> None:
    with pytest.raises(InvalidRequestError, match="sampling_params"):
        await tiny.generate(["a", "b"], [GREEDY], use_tqdm=False)
    with pytest.raises(InvalidRequestError, match="request_id"):
        await tiny.generate(["a", "b"], GREEDY, request_id="one", use_tqdm=False)


async def test_long_prompts_are_cut_or_refused(tiny: Engine, tiny_folder: Path) -> None:
    (output,) = await tiny.generate("word " * 500, GREEDY, use_tqdm=False)
    assert output.num_truncated_tokens > 0
    assert len(output.prompt_token_ids) + output.num_generated_tokens <= 128
    async with Engine(str(tiny_folder), **TINY, strict_context=True) as strict:
        with pytest.raises(PromptTooLongError, match="max_model_len=128"):
            await strict.generate("word " * 500, GREEDY, use_tqdm=False)


async def test_parameters_of_another_kind_are_refused(tiny: Engine) -> None:
    given: Any = {"max_tokens": 3}
    with pytest.raises(InvalidRequestError, match="must be SamplingParams"):
        tiny.stream("x", given)
    with pytest.raises(InvalidRequestError, match="must be SamplingParams"):
        await tiny.chat([{"role": "user", "content": "x"}], given)


async def test_using_the_engine_on_another_event_loop_is_an_error(tiny: Engine) -> None:
    async def use(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(EngineStateError, match="another event loop"):
            await call()

    verbs: list[Callable[[], Awaitable[object]]] = [
        lambda: tiny.generate("a", GREEDY),
        lambda: anext(tiny.stream("a", GREEDY)),
        lambda: tiny.embed("a"),
        lambda: tiny.chat([{"role": "user", "content": "a"}]),
        lambda: tiny.update_model_weights("demo"),
        tiny.terminate,
    ]
    for verb in verbs:
        await to_thread.run_sync(lambda verb=verb: asyncio.run(use(verb)))
    assert tiny.is_running


async def test_cancelling_all_tasks_leaves_no_reader_waiting(tiny_folder: Path) -> None:
    async with Engine(str(tiny_folder), **TINY) as engine:
        stream = engine.stream("a", dataclasses.replace(GREEDY, max_tokens=100, ignore_eos=True))
        await anext(stream)
        assert engine._life.serving is not None
        engine._life.serving.cancel()
        with pytest.raises(EngineDeadError, match="its task was cancelled"):
            async for _ in stream:
                pass
        with pytest.raises(EngineDeadError):
            await engine.generate("a", GREEDY)
        assert engine.failure is not None
    assert engine.state == "stopped"


@pytest.mark.filterwarnings("ignore")  # of what that loop left unfinished
def test_it_can_be_stopped_where_its_loop_is_gone(tiny_folder: Path) -> None:
    engine = Engine(str(tiny_folder), **TINY)
    asyncio.run(engine.initiate())
    asyncio.run(engine.terminate())
    assert engine.state == "stopped"
    del engine
    gc.collect()


async def test_silent_mode_shows_no_progress_bars(tiny: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.config.silent_mode
    await tiny.generate("a", GREEDY)
    assert capsys.readouterr().err == ""


async def test_bad_messages_are_refused(tiny: Engine) -> None:
    with pytest.raises(ChatTemplateError, match="role='boss'"):
        await tiny.chat([{"role": "boss", "content": "x"}])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"page_size": 48}, "power of two"), ({"max_num_seqs": 0}, "max_num_seqs=0"), ({"dtype": "int3"}, "dtype"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype='fp8'"),
        ({"hbm_utilization": 2.0}, "hbm_utilization"), ({"temprature": 1}, "unknown setting temprature"),
        ({"truncate_mode": "up"}, "truncate_mode"), ({"max_model_len": 1}, "no room"), ({"step_timeout_s": 0}, "step_timeout_s"),
        ({"reserve_tokens": -1}, "reserve_tokens=-1"), ({"hbm_utilization": "a"}, "hbm_utilization='a'"),
        ({"strict_context": "no"}, "strict_context='no' must be True or False"), ({"enable_prefix_caching": 1}, "enable_prefix_caching=1"),
        ({"cache": {"enable_prefix_caching": "no"}}, "enable_prefix_caching='no'"), ({"scheduler": {"tenant_weights": [1]}}, "tenant_weights"),
        ({"extra_eos_token_ids": 3}, "extra_eos_token_ids=3"), ({"extra_eos_token_ids": ["a"]}, "extra_eos_token_ids"),
        ({"compilation_cache_dir": 5}, "compilation_cache_dir=5"), ({"tokenizer": 5}, "tokenizer=5"), ({"name": 3}, "name=3"),
        ({"logits_processors": {"a": 1}}, "logits_processors"), ({"sampling_params_callback": "foo"}, "sampling_params_callback='foo'"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine("demo", **bad)


def test_settings_may_come_as_one() -> None:
    config = EngineConfig(model="elsewhere", max_num_seqs=3, scheduler=SchedulerConfig(policy="priority"))
    assert Engine.from_config(config).config == config


async def test_settings_a_model_cannot_meet(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 256"):
        await Engine(str(tiny_folder), max_model_len=1000, silent_mode=True).initiate()
    with pytest.raises(ConfigError, match="raise kv_cache_bytes"):
        await Engine(str(tiny_folder), kv_cache_bytes=1000, silent_mode=True).initiate()
    with pytest.raises(ModelLoadError, match=r"config\.json is missing"):
        await Engine(str(tmp_path), silent_mode=True).initiate()


# ── life cycle ──────────────────────────────────────────────────────────────────────────────────


async def test_methods_need_a_running_engine(tiny_folder: Path) -> None:
    engine = Engine(str(tiny_folder), **TINY)
    with pytest.raises(EngineNotRunningError, match="async with"):
        engine.stream("x")
    with pytest.raises(EngineNotRunningError):
        await engine.generate("x")
    with pytest.raises(EngineNotRunningError):
        await engine.chat([{"role": "user", "content": "x"}])
    async with engine:
        running = engine.stream("x", SamplingParams(max_tokens=100, ignore_eos=True))
        assert not (await anext(running)).finished
    last = await running.wait_finished()
    assert last.finish_reason == "abort"  # stopped with the engine, and said so
    with pytest.raises(EngineNotRunningError, match="stopped"):
        engine.stream("x")
    with pytest.raises(EngineStateError, match="make a new one"):
        await engine.initiate()
    await engine.terminate()


async def test_starting_and_stopping_in_different_tasks(tiny_folder: Path) -> None:
    engine = Engine(str(tiny_folder), **TINY)
    await asyncio.create_task(engine.initiate())
    outputs = await engine.generate("x", GREEDY, use_tqdm=False)
    assert outputs[0].finished
    await asyncio.create_task(engine.terminate())
    assert not engine.is_running


async def test_fallbacks_to_plain_xla_are_reported_with_a_reason(tiny: Engine) -> None:
    products, attention = tiny.fallbacks
    assert products.startswith("matrix products: dtype=float32")
    assert attention.startswith("attention: dtype=float32")
    assert tiny.get_metrics_summary()["fallbacks"] == 2


async def test_plain_xla_by_choice_is_no_fallback(tiny_folder: Path) -> None:
    async with Engine(str(tiny_folder), **{**TINY, "kernels": "xla", "max_num_seqs": 2}) as engine:
        assert engine.fallbacks == ()


async def test_a_failure_is_raised_repeatedly_without_growing(tiny: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = EngineDeadError("the engine failed")
    failure.__cause__ = ValueError("why")
    monkeypatch.setattr(tiny._life.pipeline, "failure", failure)
    for _ in range(3):
        with pytest.raises(EngineDeadError, match="the engine failed") as told:
            tiny.stream("hello")
        assert told.value.__cause__ is failure.__cause__
        assert failure.__traceback__ is None
        assert len(traceback.extract_tb(told.value.__traceback__)) == 3


async def test_summary_of_metrics(tiny: Engine) -> None:
    before = tiny.get_metrics_summary()
    await tiny.generate(["a", "b"], GREEDY, use_tqdm=False)
    after = tiny.get_metrics_summary()
    assert after["total_completed"] - before["total_completed"] == 2
    assert after["total_tokens"] - before["total_tokens"] == 40
    assert after["average_latency"] >= after["average_ttft"] > 0
    assert (tiny.num_pending_requests, tiny.num_running_requests) == (0, 0)


async def test_it_is_not_ended_while_another_task_starts_it(tiny_folder: Path) -> None:
    engine = Engine(str(tiny_folder), **TINY)
    starting = asyncio.ensure_future(engine.initiate())
    await asyncio.sleep(0)
    with pytest.raises(EngineStateError, match="still starting"):
        await engine.terminate()
    await starting
    assert engine.is_running
    await engine.terminate()


async def test_threads_are_limited_however_requests_are_cancelled(
    tiny: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancellation by asyncio counts too: a place is free again when its work has ended, and no place is lost."""
    assert tiny._life.admission is not None
    places = tiny._life.admission.inputs._threads
    most, begun, go, loop = int(places.total_tokens), 0, threading.Event(), asyncio.get_running_loop()

    def wait(*_: Any, **__: Any) -> str:
        nonlocal begun
        begun += 1
        go.wait(30)
        return "hello"

    with monkeypatch.context() as patched:
        patched.setattr("asurge.engine.prompts.render_chat", wait)
        tasks = [loop.create_task(tiny.chat([{"role": "user", "content": "Hi"}], GREEDY)) for _ in range(3 * most)]
        while begun < most:
            await asyncio.sleep(0)
        for _ in range(3):  # again, while they wait for their threads
            for task in tasks:
                task.cancel()
            for _ in range(20):
                await asyncio.sleep(0)
        assert (begun, places.borrowed_tokens) == (most, most)
        go.set()
        await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert (begun, places.borrowed_tokens) == (most, 0)
    with pytest.raises(ChatTemplateError, match="messages"):
        await tiny.chat([])
    await tiny.chat([{"role": "user", "content": "Hi"}], GREEDY)
    await settle(tiny)
