from __future__ import annotations

import numpy as np
import pytest

from asurge.errors import DuplicateRequestError, EngineOverloadedError, InvalidRequestError
from asurge.plan import Pooling, RowSampling, RunnerLimits, StepPlan, StepResult
from asurge.scheduler import Request, Scheduler, Update
from tests.fakes import PagedDevice, continuation, embedding


def limits(**changes: int) -> RunnerLimits:
    defaults = dict(
        num_pages=33, page_size=4, max_num_seqs=4, max_num_batched_tokens=16, max_model_len=64, prefill_quantum=4
    )
    return RunnerLimits(**(defaults | changes))


def request(
    name: str = "a", prompt: int = 6, max_tokens: int = 4, salt: str = "", first: int = 2, *, streamed: bool = True
) -> Request:
    tokens = list(range(first, first + prompt))
    return Request(name, tokens, max_tokens, RowSampling(), cache_salt=salt, streamed=streamed)


class Driver:
    """A scheduler and a device, one step at a time."""

    def __init__(self, **changes: int) -> None:
        self.limits = limits(**changes)
        self.scheduler = Scheduler(self.limits)
        self.device = PagedDevice(self.limits)

    def plan(self) -> StepPlan:
        plan = self.scheduler.plan()
        assert plan is not None
        return plan

    def run(self, plan: StepPlan | None = None) -> list[Update]:
        updates = self.scheduler.apply(self.device.execute(plan or self.plan()))
        self.scheduler.check()
        return updates

    def run_out(self) -> dict[str, list[int]]:
        texts: dict[str, list[int]] = {}
        while self.scheduler.has_work:
            for update in self.run():
                texts.setdefault(update.request_id, []).extend(update.token_ids)
        return texts

    def assert_empty(self) -> None:
        statistics = self.scheduler.statistics()
        assert statistics.pages_available == statistics.pages_total
        assert (statistics.running, statistics.waiting) == (0, 0)
        self.scheduler.check()


def test_a_long_prompt_is_prefilled_in_chunks_and_only_the_last_one_draws() -> None:
    driver = Driver()
    driver.scheduler.add(request(prompt=37))
    sizes = []
    for _ in range(3):
        plan = driver.plan()
        (row,) = plan.prefill
        sizes.append((row.start, row.num_tokens, row.samples))
        driver.run(plan)
    assert sizes == [(0, 16, False), (16, 16, False), (32, 5, True)]


@pytest.mark.parametrize(("pooling", "pooled"), [("mean", [16, 16, 5]), ("last", [0, 0, 1])])
def test_a_prompt_that_is_embedded_draws_nothing_and_ends_with_its_last_chunk(
    pooling: Pooling, pooled: list[int]
) -> None:
    driver = Driver()
    prompt = list(range(2, 39))
    driver.scheduler.add(Request("a", prompt, 0, RowSampling(), pooling=pooling))
    plans = [driver.plan() for _ in range(3)]
    assert driver.scheduler.plan() is None
    assert [(row.num_tokens, row.samples, row.pooled) for plan in plans for row in plan.rows] == [
        (size, False, count) for size, count in zip((16, 16, 5), pooled, strict=True)
    ]
    assert all(plan.draws_nothing for plan in plans)
    assert [driver.run(plan) for plan in plans[:2]] == [[], []]
    (update,) = driver.run(plans[2])
    assert update.embedding == embedding(prompt, pooling)
    driver.assert_empty()


def test_a_mean_needs_every_token_and_the_last_ones_state_only_its_own() -> None:
    driver = Driver(max_num_batched_tokens=64)
    driver.scheduler.add(request(prompt=37, max_tokens=1))
    driver.run_out()
    starts = {}
    for pooling in ("mean", "last"):
        driver.scheduler.add(Request(pooling, list(range(2, 39)), 0, RowSampling(), pooling=pooling))
        plan = driver.plan()
        starts[pooling] = plan.rows[0].start
        driver.run(plan)
    assert starts == {"mean": 0, "last": 36}


def test_a_prompt_as_long_as_the_context_can_be_embedded() -> None:
    driver = Driver(num_pages=16)  # room for 60 tokens
    for size, pooling in ((61, "last"), (61, None), (60, "mean"), (60, None)):
        long = Request("a", [3] * size, int(pooling is None), RowSampling(), pooling=pooling)
        if size == 61:
            with pytest.raises(InvalidRequestError, match="1 to 60"):
                driver.scheduler.add(long)
            continue
        driver.scheduler.add(long)
        driver.run_out()
    driver.assert_empty()


def test_decode_rows_come_before_chunks_and_share_the_budget() -> None:
    driver = Driver()
    driver.scheduler.add(request("a", prompt=4, max_tokens=8))
    driver.run()
    driver.scheduler.add(request("b", prompt=30, first=100))
    plan = driver.plan()
    assert [row.request_id for row in plan.decode] == ["a"]
    # 15 tokens are left: three quanta of four.
    assert [(row.request_id, row.num_tokens) for row in plan.prefill] == [("b", 12)]


@pytest.mark.parametrize(("bound", "chunks"), [(1, [4, 4, 4]), (4, [4, 4, 4]), (11, [8, 8, 8]), (100, [12, 12, 12])])
def test_prompts_beside_decoding_rows_have_a_bound_of_their_own(bound: int, chunks: list[int]) -> None:
    driver = Driver()
    driver.scheduler.add(request("a", prompt=6))
    driver.run()
    driver.scheduler.add(request("b", prompt=40, first=20))
    found = []
    for _ in chunks:
        plan = driver.scheduler.plan(1, bound)
        assert plan is not None
        assert len(plan.decode) == 1
        found.append(plan.prefill[0].num_tokens)
        driver.run(plan)
    assert found == chunks


def test_prompts_need_not_wait_for_rows_that_nobody_reads_as_they_grow() -> None:
    driver = Driver()
    driver.scheduler.add(request("a", prompt=6, max_tokens=8, streamed=False))
    driver.run()
    driver.scheduler.add(request("b", prompt=14, first=20, max_tokens=8))
    driver.scheduler.add(request("c", prompt=40, first=40))
    found = []
    for _ in range(3):
        plan = driver.scheduler.plan(1, 4)
        assert plan is not None
        found.append([(row.request_id, row.num_tokens) for row in plan.prefill])
        driver.run(plan)
    assert found == [[("b", 12)], [("b", 2), ("c", 8)], [("c", 4)]]  # from where b is read, it counts


def test_prompts_alone_take_the_whole_budget() -> None:
    driver = Driver()
    driver.scheduler.add(request("a", prompt=40))
    plan = driver.scheduler.plan(1, 4)
    assert plan is not None
    assert plan.prefill[0].num_tokens == 16


def test_the_next_step_is_planned_before_the_last_ones_tokens_are_known() -> None:
    driver = Driver()
    driver.scheduler.add(request(max_tokens=3))
    plans = [driver.plan() for _ in range(3)]
    assert driver.scheduler.plan() is None  # three tokens are on their way: no more may be drawn
    assert [row.token_ids is None for plan in plans for row in plan.rows] == [False, True, True]
    tokens = [token for plan in plans for update in driver.run(plan) for token in update.token_ids]
    assert tokens == continuation(list(range(2, 8)), 3)
    driver.assert_empty()


def test_a_shared_prefix_is_computed_once() -> None:
    driver = Driver(max_num_batched_tokens=64)
    driver.scheduler.add(request("a", prompt=14))
    driver.run()
    driver.scheduler.add(request("b", prompt=14))
    (row,) = driver.plan().prefill
    assert (row.start, row.num_tokens) == (12, 2)
    statistics = driver.scheduler.statistics()
    assert statistics.prefix_cache_hits == 12


def test_one_token_of_a_fully_cached_prompt_is_computed_again() -> None:
    driver = Driver()
    driver.scheduler.add(request("a", prompt=8))
    driver.run_out()
    driver.scheduler.add(request("b", prompt=8))
    (row,) = driver.plan().prefill
    assert (row.start, row.num_tokens) == (4, 4)


def test_salts_keep_tenants_apart() -> None:
    driver = Driver()
    driver.scheduler.add(request("a", prompt=12, salt="one"))
    driver.run_out()
    driver.scheduler.add(request("b", prompt=12, salt="two"))
    (row,) = driver.plan().prefill
    assert row.start == 0


def test_the_latest_arrival_is_preempted_and_nobodys_text_changes() -> None:
    driver = Driver(num_pages=8, max_num_seqs=2)
    for name in ("a", "b"):
        driver.scheduler.add(request(name, prompt=8, max_tokens=12, first=ord(name)))
    texts = driver.run_out()
    assert driver.scheduler.statistics().preemptions > 0
    for name in ("a", "b"):
        assert texts[name] == continuation(list(range(ord(name), ord(name) + 8)), 12)
    driver.assert_empty()


@pytest.mark.parametrize("phase", ["queued", "prefilling", "decoding", "finishing"])
def test_cancelling_frees_everything_in_every_phase(phase: str) -> None:
    driver = Driver()
    driver.scheduler.add(request(prompt=20, max_tokens=3))
    flying = []
    steps = {"queued": 0, "prefilling": 1, "decoding": 3, "finishing": 4}[phase]
    for _ in range(steps):
        flying.append(driver.device.execute(driver.plan()))
    assert driver.scheduler.finish("a", "abort")
    driver.assert_empty()  # at once, although steps are in flight
    for result in flying:
        assert driver.scheduler.apply(result) == []
    driver.assert_empty()
    assert not driver.scheduler.finish("a", "abort")


def test_a_failed_step_fails_its_requests_and_spares_the_others() -> None:
    driver = Driver(max_num_batched_tokens=8)
    driver.scheduler.add(request("a", prompt=8, first=50))
    plan = driver.plan()
    driver.scheduler.add(request("b", prompt=8, first=70))
    broken = RuntimeError("boom")
    updates = driver.scheduler.apply(StepResult(plan, np.zeros((1, 1), np.int32), broken))
    assert [(update.request_id, update.finish_reason, update.error) for update in updates] == [("a", "error", broken)]
    assert driver.run_out() == {"b": continuation(list(range(70, 78)), 4)}
    driver.assert_empty()


def test_what_a_failed_step_was_to_write_is_not_found_by_others() -> None:
    driver = Driver()
    driver.scheduler.add(request("a", prompt=9, max_tokens=1))
    failed = driver.plan()
    driver.scheduler.add(request("b", prompt=9))
    follower = driver.plan()
    assert follower.prefill[0].start == 8  # it counts on the pages of the step in flight
    driver.scheduler.apply(StepResult(failed, np.zeros((1, 1), np.int32), RuntimeError("boom")))
    assert driver.scheduler.apply(StepResult(follower, np.array([[999]], np.int32))) == []
    assert driver.run_out() == {"b": continuation(list(range(2, 11)), 4)}


def test_refusals_change_nothing() -> None:
    driver = Driver()
    scheduler = Scheduler(driver.limits, max_queued_requests=1)
    scheduler.add(request("a"))
    with pytest.raises(DuplicateRequestError, match="'a' is still running"):
        scheduler.add(request("a"))
    with pytest.raises(EngineOverloadedError, match="max_queued_requests=1") as refused:
        scheduler.add(request("b"))
    assert refused.value.retry_after_s > 0
    with pytest.raises(InvalidRequestError, match="1 to 63"):
        Scheduler(driver.limits).add(request(prompt=64))
    with pytest.raises(InvalidRequestError, match="0 tokens"):
        Scheduler(driver.limits).add(request(prompt=0))
    assert scheduler.num_waiting == 1


def test_the_longest_prompt_draws_one_token() -> None:
    driver = Driver()
    driver.scheduler.add(request(prompt=63, max_tokens=9))
    assert len(driver.run_out()["a"]) == 1
    driver.assert_empty()


def test_a_stop_token_ends_the_text_and_is_reported() -> None:
    driver = Driver()
    first = continuation(list(range(2, 8)), 2)[1]
    driver.scheduler.add(Request("a", list(range(2, 8)), 9, RowSampling(), frozenset([first])))
    driver.run()
    (update,) = driver.run()
    assert (update.token_ids, update.finish_reason, update.stop_reason) == ((first,), "stop", first)
    driver.assert_empty()


def test_a_preempted_sequence_is_not_admitted_before_its_draws_arrive() -> None:
    driver = Driver(num_pages=8, max_num_seqs=2)
    for name in ("a", "b"):
        driver.scheduler.add(request(name, prompt=8, max_tokens=12, first=ord(name)))
    driver.run()
    flying = []
    while not driver.scheduler.statistics().preemptions:
        flying.append(driver.device.execute(driver.plan()))
    assert any(row.request_id == "b" for result in flying for row in result.plan.rows)
    assert (driver.scheduler.num_running, driver.scheduler.num_waiting) == (1, 1)
    driver.scheduler.finish("a", "abort")  # pages and a slot are free now
    assert driver.scheduler.plan() is None
    tokens = [token for result in flying for update in driver.scheduler.apply(result) for token in update.token_ids]
    (row,) = driver.plan().prefill
    assert row.start + row.num_tokens == 8 + 1 + len(tokens), "known output is computed again as part of the prompt"
