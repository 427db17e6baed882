"""Draws who ran on each processor: ``perf sched timehist | python -m benchmarks.timeline --out FILE.svg before=FILE after=-``.

Takes texts of ``perf sched timehist``, each with a title. Threads are told apart by name: those of the kernels (``asurge-1``, ...),
those that call them (XLA's, and the engine's own), the neighbours (``--neighbour NAME``), and all others. Record with

    perf sched record -a -o FILE sleep 0.3 && perf sched timehist -i FILE > TEXT
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from asurge.bench.plot import figure_class

COLORS = {"caller": "#1f77b4", "kernel thread": "#2ca02c", "neighbour": "#d62728", "other": "#bbbbbb"}
_LINE = re.compile(
    r"^\s*(?P<end_s>\d+\.\d+)\s+\[(?P<processor>\d+)\]\s+(?P<name>.+?)\[\d+(/\d+)?\]\s+[\d.]+\s+[\d.]+\s+(?P<ran_ms>[\d.]+)\s*$"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """A thread's time on a processor, in seconds."""

    processor: int
    begin_s: float
    end_s: float
    kind: str


def parse_turns(lines: Iterable[str], neighbour: str) -> Iterator[Turn]:
    """Turns in the order in which they ended; idle ones are left out."""
    for line in lines:
        if (found := _LINE.match(line)) and not found["name"].startswith("<idle>"):
            end_s = float(found["end_s"])
            begin_s = end_s - float(found["ran_ms"]) / 1e3
            yield Turn(int(found["processor"]), begin_s, end_s, kind_of(found["name"], neighbour))


def kind_of(name: str, neighbour: str) -> str:
    """Return what a thread of this name does."""
    if name == neighbour:
        return "neighbour"
    if re.fullmatch(r"asurge-\d+", name):
        return "kernel thread"
    return "caller" if name.startswith(("tf_XLA", "python", "asurge")) else "other"


def draw(recordings: Sequence[tuple[str, Sequence[Turn]]], span_s: float, path: Path) -> None:
    """Draw a panel for each recording, its middle ``span_s``."""
    figure = figure_class()(figsize=(11, 1.5 * len(recordings) + 0.8), layout="constrained")
    panels = figure.subplots(len(recordings), 1, squeeze=False)
    for axes, (title, turns) in zip(panels[:, 0], recordings, strict=True):
        middle_s = (turns[0].begin_s + turns[-1].end_s) / 2
        from_s = middle_s - span_s / 2
        for turn in turns:
            if turn.end_s > from_s and turn.begin_s < from_s + span_s:
                begin_ms, width_ms = 1e3 * (turn.begin_s - from_s), 1e3 * (turn.end_s - turn.begin_s)
                axes.broken_barh(
                    [(begin_ms, width_ms)], (turn.processor - 0.4, 0.8), color=COLORS[turn.kind], linewidth=0
                )
        processors = sorted({turn.processor for turn in turns})
        axes.set(
            title=title, xlim=(0, 1e3 * span_s), yticks=processors, yticklabels=[f"CPU {one}" for one in processors]
        )
    panels[-1, 0].set_xlabel("ms")
    for kind, color in COLORS.items():
        panels[-1, 0].broken_barh([(0, 0)], (0, 0), color=color, label=kind)
    figure.legend(loc="outside lower center", ncols=len(COLORS))
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+", metavar="TITLE=TEXT", help="- reads standard input")
    parser.add_argument("--neighbour", default="neighbour", metavar="NAME", help="the neighbours' threads")
    parser.add_argument("--span", type=float, default=0.06, metavar="SECONDS")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.svg")
    options = parser.parse_args(arguments)
    recordings = []
    for given in options.recordings:
        title, _, name = given.rpartition("=")
        lines = (sys.stdin.read() if name == "-" else Path(name).read_text()).splitlines()
        turns = list(parse_turns(lines, options.neighbour))
        if not turns:
            parser.error(f"{name} holds no turns: is it the output of perf sched timehist?")
        recordings.append((title, turns))
    draw(recordings, options.span, options.out)


if __name__ == "__main__":
    main()
