"""Recordings of the scheduler, as pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.timeline import Turn, main, parse_turns

TEXT = """\
           time    cpu  task name                       wait time  sch delay   run time
                        [tid/pid]                          (msec)     (msec)     (msec)
--------------- ------  ------------------------------  ---------  ---------  ---------
     100.001000 [0000]  tf_XLAEigen[11/10]                  0.000      0.000      1.000
     100.003000 [0001]  asurge-1[12/10]                     0.011      0.004      2.000
     100.004000 [0001]  <idle>                              0.000      0.000      1.000
     100.006000 [0001]  busy[7]                             0.000      0.000      2.000
     100.007000 [0000]  kworker/0:1-events[9]               0.000      0.000      0.500
"""


def test_turns_are_told_apart() -> None:
    turns = list(parse_turns(TEXT.splitlines(), "busy"))
    assert [(turn.processor, turn.kind) for turn in turns] == [
        (0, "caller"), (1, "kernel thread"), (1, "neighbour"), (0, "other")
    ]  # fmt: skip
    assert turns[1] == Turn(1, pytest.approx(100.001), 100.003, "kernel thread")


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    text, picture = tmp_path / "text", tmp_path / "picture.svg"
    text.write_text(TEXT)
    main([f"before={text}", f"after={text}", "--neighbour", "busy", "--out", str(picture)])
    assert "kernel thread" in picture.read_text() or picture.stat().st_size > 5_000  # text may be drawn as shapes


def test_a_text_without_turns_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_text("nothing\n")
    with pytest.raises(SystemExit):
        main([f"before={text}", "--out", str(tmp_path / "picture.svg")])
    assert "holds no turns" in capsys.readouterr().err
