"""Failing steps: who fails with them, who starts over, and what nobody may find in the cache afterwards."""

from __future__ import annotations

import pytest

from tests.fakes import continuation, embedding, limits
from tests.scheduler.driver import BOOM, Driver


def test_pages_of_an_aborted_request_are_forgotten_when_its_step_fails() -> None:
    driver = Driver(limits(max_num_batched_tokens=64))
    driver.add("a", range(2, 11))
    plan = driver.plan()
    driver.scheduler.finish("a")
    assert driver.apply(driver.fail(plan)) == []
    driver.add("b", range(2, 11))
    assert driver.run_out() == {"b": continuation(range(2, 11), 4)}


def test_pooling_restarts_after_a_preemption() -> None:
    """Its first chunk has come, and its second is in flight."""
    driver = Driver(limits(max_num_batched_tokens=8))
    driver.add("a", range(2, 22), 0, pooling="mean")
    first, second = driver.plan(), driver.plan()
    assert driver.step(first) == []
    driver.scheduler._running_set.preempt(next(iter(driver.scheduler._running)))
    third = driver.plan()
    assert (third.rows[0].start, third.rows[0].pooled) == (0, 8)
    for plan in (second, third, driver.plan()):
        assert driver.step(plan) == []
    (update,) = driver.step()
    assert update.embedding == embedding(range(2, 22), "mean")


def test_results_computed_from_a_failed_steps_pages_are_dropped_too() -> None:
    driver = Driver(limits(max_num_batched_tokens=64))
    driver.add("a", range(2, 7), max_tokens=1)
    failed = driver.fail(driver.plan())
    driver.add("b", range(2, 15))
    follower = driver.plan()
    assert follower.prefill[0].start == 4
    spoiled = driver.device.execute(follower)
    assert driver.device.read_garbage[follower.step_id] == {"b"}
    assert [update.sequence_id for update in driver.apply(failed)] == ["a"]
    driver.scheduler.finish("b")
    assert driver.apply(spoiled) == []
    driver.add("c", range(2, 7), max_tokens=1)  # writes the failed page anew: what hung on it must not come back
    driver.run_out()
    driver.add("d", range(2, 15))
    assert driver.plan().prefill[0].start == 4


def test_a_failed_step_spares_those_that_only_share_an_older_prefix() -> None:
    driver = Driver(limits(max_num_batched_tokens=8))
    driver.add("a", range(2, 10), max_tokens=1)
    driver.run_out()
    driver.add("b", range(2, 18))
    failed = driver.fail(driver.plan())
    driver.add("c", range(2, 11))
    later = driver.plan()
    assert [(row.sequence_id, row.start) for row in later.prefill] == [("c", 8)]
    result = driver.device.execute(later)
    assert [update.sequence_id for update in driver.apply(failed)] == ["b"]
    (update,) = driver.apply(result)
    assert (update.sequence_id, list(update.token_ids)) == ("c", continuation(range(2, 11), 1))
    assert driver.scheduler.statistics().preemptions == 0


def test_pages_of_an_older_state_epoch_are_dropped_and_later_samples_kept() -> None:
    """A chunk of a sequence is in flight when it is preempted and admitted again; then the chunk's step fails."""
    driver = Driver(limits(num_pages=9, max_num_batched_tokens=12))
    driver.add("a", range(100, 108), max_tokens=16)
    driver.step()
    driver.add("b", range(200, 220))
    flying = []
    for _ in range(12):
        plan = driver.plan()
        flying.append(driver.device.execute(plan))
        if driver.scheduler.statistics().preemptions:
            break
    assert driver.scheduler.statistics().preemptions == 1
    updates = driver.apply(driver.fail(flying[0].plan))
    assert {update.finish_reason for update in updates} == {"error"}
    for result in flying[1:]:
        driver.apply(result)
    for name, text in driver.run_out().items():
        assert (name, text) == ("b", continuation(range(200, 220), 4))


def test_a_sequence_set_back_may_preempt_a_younger_one_about_to_sample() -> None:
    """After a failure an old sequence prefills in chunks beside a younger one that decodes, and outgrows it."""
    driver = Driver(limits(num_pages=9, max_num_batched_tokens=8))
    driver.add("a", range(2, 7), max_tokens=1)
    results = [driver.fail(driver.plan())]
    driver.add("old", range(2, 26), max_tokens=2)
    driver.add("young", range(500, 504), max_tokens=12)
    results += [driver.execute() for _ in range(3)]
    assert [update.sequence_id for update in driver.apply(results[0])] == ["a"]
    texts: dict[str, list[int]] = {}
    for result in results[1:]:
        for update in driver.apply(result):
            texts.setdefault(update.sequence_id, []).extend(update.token_ids)
    assert list(texts) == ["young"]
    for name, text in driver.run_out().items():
        texts.setdefault(name, []).extend(text)
    assert driver.scheduler.statistics().preemptions >= 2
    assert texts == {"old": continuation(range(2, 26), 2), "young": continuation(range(500, 504), 12)}


@pytest.mark.parametrize("reported", ["as errors", "as results of emptied pages"])
def test_a_lost_state_fails_one_steps_requests_and_sets_all_others_back_once(reported: str) -> None:
    driver = Driver(limits(max_num_batched_tokens=8))
    driver.add("a", range(2, 10))
    first = driver.plan()
    driver.add("b", range(50, 58))
    second = driver.plan()
    assert [(row.sequence_id, row.num_tokens) for row in second.rows] == [("a", 1), ("b", 4)]
    third = driver.plan()
    lost = driver.fail(first, state_lost=True)
    if reported == "as errors":
        behind = [driver.fail(plan, state_lost=True) for plan in (second, third)]
    else:
        behind = [driver.device.execute(plan) for plan in (second, third)]
    assert [(update.sequence_id, update.error) for update in driver.apply(lost)] == [("a", BOOM)]
    fresh = driver.execute()  # planned after the loss was known: it counts
    preemptions = driver.scheduler.statistics().preemptions
    for result in behind:
        assert driver.apply(result) == []
    assert driver.scheduler.statistics().preemptions == preemptions
    first_tokens = [token for update in driver.apply(fresh) for token in update.token_ids]
    assert first_tokens + driver.run_out()["b"] == continuation(range(50, 58), 4)


def test_a_second_loss_is_noticed_though_its_step_is_void() -> None:
    """Between the two, a step that was planned after the first one was known has run on pages that are gone since."""
    driver = Driver(limits(max_num_batched_tokens=8))
    driver.add("a", range(2, 10))
    first = driver.plan()
    driver.add("b", range(50, 58))
    second = driver.execute()
    assert [update.sequence_id for update in driver.apply(driver.fail(first, state_lost=True))] == ["a"]
    third = driver.execute()
    assert second.state_epoch == 0
    assert third.state_epoch == 1
    again = driver.fail(second.plan, state_lost=True, state_epoch=third.state_epoch)
    assert driver.apply(again) == []
    assert driver.apply(third) == []
    assert driver.run_out() == {"b": continuation(range(50, 58), 4)}


def test_an_unreported_loss_of_state_shows_in_the_next_step() -> None:
    driver = Driver(limits(max_num_batched_tokens=8))
    driver.add("a", range(2, 10))
    driver.step()
    driver.device.lose_state()
    assert driver.step() == []
    texts = driver.run_out()
    assert texts == {"a": continuation(range(2, 10), 4)[1:]}
    driver.add("b", range(2, 10))  # what the cache knew of the lost pages is forgotten
    assert driver.run_out() == {"b": continuation(range(2, 10), 4)}
