"""Several page tables, some with a window: what each holds, and what is found again."""

from __future__ import annotations

import dataclasses

import pytest

from asurge.plan import StepPlan
from tests.fakes import continuation, limits
from tests.scheduler.driver import Driver

LIMITS = limits(num_pages=64, max_num_seqs=2, windows=(None, 6, 6))
PROMPT = list(range(2, 35))


def run(driver: Driver, name: str, prompt: list[int], count: int) -> list[StepPlan]:
    """All its steps; the text is checked."""
    before = len(driver.plans)
    driver.add(name, prompt, count)
    assert driver.run_out() == {name: continuation(prompt, count)}
    return driver.plans[before:]


def test_a_page_table_frees_pages_behind_its_window_and_others_keep_theirs() -> None:
    plans = run(Driver(LIMITS), "a", PROMPT, 20)
    for plan in plans:
        (row,) = plan.rows
        end, full, *windowed = row.start + row.num_tokens, *row.page_tables
        assert (full.first, len(full.pages)) == (0, -(-end // 4))
        for table in windowed:
            assert table.first == max(row.start - 5, 0) // 4
            assert table.first + len(table.pages) == -(-end // 4)
    pages = [page for table in plans[-1].rows[0].page_tables for page in table.pages.tolist()]
    assert len(set(pages)) == len(pages)


def test_a_prefix_hit_needs_only_the_pages_within_the_window() -> None:
    driver = Driver(LIMITS)
    run(driver, "a", PROMPT, 1)
    for page in _pages(driver, 1)[:6] + _pages(driver, 2)[:6]:
        driver.scheduler._pool.forget(page)
    assert run(driver, "b", PROMPT, 8)[0].rows[0].start == 32


@pytest.mark.parametrize(
    ("missing", "start"),
    [
        ((0, 3), 12),  # a full table needs all before the end
        ((1, 7), 28),  # the last column, which every window needs
        ((2, 6), 24),  # 32 - 5 is in it
        ((2, 5), 32),  # behind the window of the end
    ],
)
def test_a_prefix_hit_is_shortened_to_what_all_tables_hold(missing: tuple[int, int], start: int) -> None:
    driver = Driver(LIMITS)
    run(driver, "a", PROMPT, 1)
    table, column = missing
    driver.scheduler._pool.forget(_pages(driver, table)[column])
    assert run(driver, "b", PROMPT, 8)[0].rows[0].start == start


def _pages(driver: Driver, table: int) -> list[int]:
    """Pages of the first prompt in a table, in the order of its columns."""
    return [page for (at, _), page in driver.scheduler._pool._page_of.items() if at == table]


def test_the_longest_sequence_fits_all_page_tables() -> None:
    # A step of 16 tokens and 5 before them touch 6 pages at most, so 10 columns take 10 + 2 * 6.
    assert dataclasses.replace(LIMITS, num_pages=23).longest == 41
    assert dataclasses.replace(LIMITS, num_pages=22).longest == 37
    assert dataclasses.replace(LIMITS, num_pages=3).longest == 1
    assert LIMITS.longest == 64


def test_the_longest_sequence_runs_alone_in_a_pool_that_just_holds_it() -> None:
    driver = Driver(dataclasses.replace(LIMITS, num_pages=23))
    run(driver, "a", PROMPT, 8)
    assert driver.scheduler.statistics().preemptions == 0


def test_copies_of_a_prompt_share_its_pages_in_every_table() -> None:
    driver = Driver(dataclasses.replace(LIMITS, max_num_batched_tokens=32))
    for name in "ab":
        driver.add(name, PROMPT[:13])
    driver.step()
    (plan,) = driver.plans
    assert [row.start for row in plan.rows] == [0, 12]
    one, other = (row.page_tables for row in plan.rows)
    for table in range(3):
        shared = [column for column in range(3) if column >= other[table].first]
        assert [int(one[table].pages[column]) for column in shared] == [
            int(other[table].pages[column - other[table].first]) for column in shared
        ]
