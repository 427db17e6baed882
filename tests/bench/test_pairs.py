"""Settings against each other in one process."""

from __future__ import annotations

from benchmarks.pairs import run_pairs, table_of


async def test_engines_take_turns_and_are_compared_with_the_first() -> None:
    groups = {"–": {}, "pipeline_depth=1": {"pipeline_depth": 1}}
    found = await run_pairs("demo", groups, ["w1"], repeat=2, seed=0)
    assert list(found["w1"]) == list(groups)
    assert all([one.completed for one in turns] == [5, 5] for turns in found["w1"].values())
    turns = found["w1"]
    turns["pipeline_depth=1"] = turns["–"]  # figures that do not depend on the machine
    columns = [list(column.cells) for column in table_of(found).columns]
    assert columns[1] == list(groups)
    assert columns[3:6] == [["1.00", "1.00"]] * 3
