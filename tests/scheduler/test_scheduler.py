from __future__ import annotations

import numpy as np
import pytest

from asurge.errors import DuplicateRequestError, EngineOverloadedError, InvalidRequestError
from asurge.plan import Pooling, StepResult
from asurge.scheduler import Scheduler
from asurge.scheduler.running import RunningSet
from tests.fakes import continuation, embedding, limits
from tests.scheduler.driver import BOOM, LIMITS, Driver, numbers, request


def test_chunked_prefill_samples_only_after_the_last_chunk() -> None:
    driver = Driver()
    driver.add("a", numbers(37))
    sizes = []
    for _ in range(3):
        plan = driver.plan()
        (row,) = plan.prefill
        sizes.append((row.start, row.num_tokens, row.samples))
        driver.step(plan)
    assert sizes == [(0, 16, False), (16, 16, False), (32, 5, True)]


@pytest.mark.parametrize(("pooling", "pooled"), [("mean", [16, 16, 5]), ("last", [0, 0, 1])])
def test_an_embedding_samples_nothing_and_ends_with_its_last_chunk(pooling: Pooling, pooled: list[int]) -> None:
    driver = Driver()
    prompt = numbers(37)
    driver.add("a", prompt, 0, pooling=pooling)
    plans = [driver.plan() for _ in range(3)]
    assert driver.scheduler.plan() is None
    assert [(row.num_tokens, row.samples, row.pooled) for plan in plans for row in plan.rows] == [
        (size, False, count) for size, count in zip((16, 16, 5), pooled, strict=True)
    ]
    assert all(plan.samples_nothing for plan in plans)
    assert [driver.step(plan) for plan in plans[:2]] == [[], []]
    (update,) = driver.step(plans[2])
    assert update.embedding == embedding(prompt, pooling)
    driver.assert_empty()


def test_a_mean_needs_every_token_and_the_last_ones_state_only_its_own() -> None:
    driver = Driver(limits(max_num_batched_tokens=64))
    driver.add("a", numbers(37), 1)
    driver.run_out()
    starts = {}
    for pooling in ("mean", "last"):
        driver.add(pooling, numbers(37), 0, pooling=pooling)
        plan = driver.plan()
        starts[pooling] = plan.rows[0].start
        driver.step(plan)
    assert starts == {"mean": 0, "last": 36}


def test_a_prompt_as_long_as_the_context_can_be_embedded() -> None:
    driver = Driver(limits(num_pages=16))  # room for 60 tokens
    for size, pooling in ((61, "last"), (61, None), (60, "mean"), (60, None)):
        long = ("a", [3] * size, int(pooling is None))
        if size == 61:
            with pytest.raises(InvalidRequestError, match="1 to 60"):
                driver.add(*long, pooling=pooling)
            continue
        driver.add(*long, pooling=pooling)
        driver.run_out()


def test_decode_rows_come_before_chunks_and_share_the_budget() -> None:
    driver = Driver()
    driver.add("a", numbers(4), 8)
    driver.step()
    driver.add("b", numbers(30, 100))
    plan = driver.plan()
    assert [row.sequence_id for row in plan.decode] == ["a"]
    # 15 tokens are left: three quanta of four.
    assert [(row.sequence_id, row.num_tokens) for row in plan.prefill] == [("b", 12)]


@pytest.mark.parametrize(("bound", "chunks"), [(1, [4, 4, 4]), (4, [4, 4, 4]), (11, [8, 8, 8]), (100, [12, 12, 12])])
def test_prompts_beside_decoding_rows_have_a_bound_of_their_own(bound: int, chunks: list[int]) -> None:
    driver = Driver()
    driver.add("a", numbers(6))
    driver.step()
    driver.add("b", numbers(40, 20))
    found = []
    for _ in chunks:
        plan = driver.plan(1, bound)
        assert len(plan.decode) == 1
        found.append(plan.prefill[0].num_tokens)
        driver.step(plan)
    assert found == chunks


def test_prefill_is_not_limited_by_rows_without_streaming_readers() -> None:
    driver = Driver()
    driver.add("a", numbers(6), 8, streamed=False)
    driver.step()
    driver.add("b", numbers(14, 20), 8)
    driver.add("c", numbers(40, 40))
    found = []
    for _ in range(3):
        plan = driver.plan(1, 4)
        found.append([(row.sequence_id, row.num_tokens) for row in plan.prefill])
        driver.step(plan)
    assert found == [[("b", 12)], [("b", 2), ("c", 8)], [("c", 4)]]  # from where b is read, it counts


GROUPED = limits(max_decode_steps=4, max_num_seqs=2)


def test_more_decode_steps_are_grouped_without_streaming_readers() -> None:
    driver = Driver(GROUPED)
    driver.add("a", numbers(), 12, streamed=False)
    driver.step()
    assert driver.step(driver.plan(2, unread=4))
    assert driver.plans[-1].decode_steps == 4
    driver.add("b", numbers(8, 20), 12)
    driver.step()
    assert driver.plan(2, unread=4).decode_steps == 2


def test_for_a_slot_a_group_is_no_longer_than_the_first_to_end() -> None:
    driver = Driver(GROUPED)
    driver.add("a", numbers(), 12, streamed=False)
    driver.add("b", numbers(8, 20), 4, streamed=False)
    driver.step()
    driver.add("c", numbers(8, 40), 4, streamed=False)
    groups = []
    while (plan := driver.plan(unread=4)).decode or not groups:
        groups.append([row.decode_steps for row in plan.decode])
        driver.step(plan)
        if len(driver.started) == 3:
            break
    assert groups == [[3, 3], [1]]  # b has ended, so c begins beside a


def test_streaming_readers_do_not_delay_others_slots() -> None:
    driver = Driver(GROUPED)
    driver.add("a", numbers(), 12)
    driver.add("b", numbers(8, 20), 12, streamed=False)
    driver.step()
    driver.add("c", numbers(8, 40), 4)
    assert driver.plan(4, unread=4).decode_steps == 1


def test_prompts_alone_take_the_whole_budget() -> None:
    driver = Driver()
    driver.add("a", numbers(40))
    assert driver.plan(1, 4).prefill[0].num_tokens == 16


def test_the_next_step_is_planned_before_the_last_ones_tokens_are_known() -> None:
    driver = Driver()
    driver.add("a", numbers(6), 3)
    plans = [driver.plan() for _ in range(3)]
    assert driver.scheduler.plan() is None  # three tokens are on their way: no more may be sampled
    assert [row.token_ids is None for plan in plans for row in plan.rows] == [False, True, True]
    tokens = [token for plan in plans for update in driver.step(plan) for token in update.token_ids]
    assert tokens == continuation(numbers(6), 3)
    driver.assert_empty()


def test_a_shared_prefix_is_computed_once() -> None:
    driver = Driver(limits(max_num_batched_tokens=64))
    driver.add("a", numbers(14))
    driver.step()
    driver.add("b", numbers(14))
    (row,) = driver.plan().prefill
    assert (row.start, row.num_tokens) == (12, 2)
    statistics = driver.scheduler.statistics()
    assert statistics.prefix_cache_hits == 12


def test_one_token_of_a_fully_cached_prompt_is_computed_again() -> None:
    driver = Driver()
    driver.add("a", numbers(8))
    driver.run_out()
    driver.add("b", numbers(8))
    (row,) = driver.plan().prefill
    assert (row.start, row.num_tokens) == (4, 4)


def test_salts_keep_tenants_apart() -> None:
    driver = Driver()
    driver.add("a", numbers(12), cache_salt="one")
    driver.run_out()
    driver.add("b", numbers(12), cache_salt="two")
    (row,) = driver.plan().prefill
    assert row.start == 0


def test_any_text_is_a_salt() -> None:
    driver = Driver()
    driver.add("a", numbers(12), cache_salt="\ud800")
    driver.run_out()
    driver.add("b", numbers(12), cache_salt="\ud800")
    (row,) = driver.plan().prefill
    assert row.start == 8


def test_the_latest_arrival_is_preempted_and_no_text_changes() -> None:
    driver = Driver(limits(num_pages=8, max_num_seqs=2))
    for name in ("a", "b"):
        driver.add(name, numbers(8, ord(name)), 12)
    texts = driver.run_out()
    assert driver.scheduler.statistics().preemptions > 0
    for name in ("a", "b"):
        assert texts[name] == continuation(numbers(8, ord(name)), 12)


def test_a_victim_has_no_row_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever chooses another victim than one that comes later is told by the name of the rule."""
    monkeypatch.setattr(RunningSet, "_last", lambda self: next(iter(self.running)))
    driver = Driver(limits(num_pages=8, max_num_seqs=2))
    for name in ("a", "b"):
        driver.add(name, numbers(8, ord(name)), 12)
    with pytest.raises(AssertionError, match="a victim has no row in the plan"):
        driver.run_out()


@pytest.mark.parametrize("phase", ["queued", "prefilling", "decoding", "finishing"])
def test_cancelling_frees_everything_in_every_phase(phase: str) -> None:
    driver = Driver()
    driver.add("a", numbers(20), 3)
    flying = []
    steps = {"queued": 0, "prefilling": 1, "decoding": 3, "finishing": 4}[phase]
    for _ in range(steps):
        flying.append(driver.execute())
    assert driver.scheduler.finish("a")
    driver.assert_empty()  # at once, although steps are in flight
    for result in flying:
        assert driver.apply(result) == []
    driver.assert_empty()
    assert not driver.scheduler.finish("a")


def test_a_failed_step_fails_its_requests_and_spares_the_others() -> None:
    driver = Driver(limits(max_num_batched_tokens=8))
    driver.add("a", numbers(8, 50))
    plan = driver.plan()
    driver.add("b", numbers(8, 70))
    updates = driver.apply(driver.fail(plan))
    assert [(update.sequence_id, update.finish_reason, update.error) for update in updates] == [("a", "error", BOOM)]
    assert driver.run_out() == {"b": continuation(numbers(8, 70), 4)}


def test_pages_of_a_failed_step_are_not_shared() -> None:
    driver = Driver()
    driver.add("a", numbers(9), 1)
    failed = driver.plan()
    driver.add("b", numbers(9))
    follower = driver.plan()
    assert follower.prefill[0].start == 8  # it counts on the pages of the step in flight
    driver.apply(driver.fail(failed))
    assert driver.scheduler.apply(StepResult(follower, np.array([[999]], np.int32))) == []
    assert driver.run_out() == {"b": continuation(numbers(9), 4)}


def test_refusals_change_nothing() -> None:
    scheduler = Scheduler(LIMITS, max_queued_requests=1)
    scheduler.add(request("a"))
    with pytest.raises(DuplicateRequestError, match="'a' is still running"):
        scheduler.add(request("a"))
    with pytest.raises(EngineOverloadedError, match="max_queued_requests=1") as refused:
        scheduler.add(request("b"))
    assert refused.value.retry_after_s > 0
    with pytest.raises(InvalidRequestError, match="1 to 63"):
        Driver().add("a", numbers(64))
    with pytest.raises(InvalidRequestError, match="0 tokens"):
        Driver().add("a", numbers(0))
    assert scheduler.num_waiting == 1


def test_the_longest_prompt_samples_one_token() -> None:
    driver = Driver()
    driver.add("a", numbers(63), 9)
    assert len(driver.run_out()["a"]) == 1


def test_a_stop_token_ends_the_text_and_is_reported() -> None:
    driver = Driver()
    first = continuation(numbers(6), 2)[1]
    driver.add("a", numbers(6), 9, stop_token_ids=frozenset([first]))
    driver.step()
    (update,) = driver.step()
    assert (update.token_ids, update.finish_reason, update.stop_reason) == ((first,), "stop", first)
    driver.assert_empty()


def test_a_preempted_sequence_waits_for_its_tokens_in_flight() -> None:
    driver = Driver(limits(num_pages=8, max_num_seqs=2))
    for name in ("a", "b"):
        driver.add(name, numbers(8, ord(name)), 12)
    driver.step()
    flying = []
    while not driver.scheduler.statistics().preemptions:
        flying.append(driver.execute())
    assert any(row.sequence_id == "b" for result in flying for row in result.plan.rows)
    assert (driver.scheduler.num_running, driver.scheduler.num_waiting) == (1, 1)
    driver.scheduler.finish("a")  # pages and a slot are free now
    assert driver.scheduler.plan() is None
    tokens = [token for result in flying for update in driver.apply(result) for token in update.token_ids]
    (row,) = driver.plan().prefill
    assert row.start + row.num_tokens == 8 + 1 + len(tokens), "known output is computed again as part of the prompt"
