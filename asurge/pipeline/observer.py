"""Who may watch the steps go by."""

from __future__ import annotations

from typing import Literal, Protocol

Stage = Literal["plan", "dispatch", "draw", "device", "apply", "deliver"]
STAGES: tuple[Stage, ...] = ("plan", "dispatch", "draw", "device", "apply", "deliver")


class StepObserver(Protocol):
    """Told of each stage of each step when it is over. Called on the loop and in worker threads; must be quick.

    ``plan``: the scheduler decides. ``dispatch``: packing and sending. ``draw``: masks and draws apart. ``device``: the
    device computes, as far as the host can tell. ``apply``: the scheduler takes the result in. ``deliver``: texts.
    """

    def saw(self, stage: Stage, step_id: int, begin_s: float, end_s: float, /) -> None: ...
