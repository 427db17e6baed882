"""How many decode steps one dispatch runs."""

from __future__ import annotations

GROUP_S = 0.025
"""Seconds a group may take: tokens come that far apart, and a new request waits that long at most."""

_SMOOTHING = 0.2


class Pacer:
    """Groups steps that are short against `GROUP_S`, so that the host's work is shared among them.

    A group hides the host's time, but its tokens arrive together and admit nobody in between: where a step takes long by
    itself, there is nothing to gain and it stays alone.
    """

    def __init__(self, group_s: float = GROUP_S) -> None:
        self._group_s = group_s
        self._step_s: float | None = None

    @property
    def draws(self) -> int:
        """Steps to run in one go; the scheduler and the device bound them further."""
        return 1 if not self._step_s else max(1, int(self._group_s / self._step_s))

    def see(self, draws: int, device_time_s: float) -> None:
        """Take in how long the device took for a group."""
        step_s = device_time_s / draws
        self._step_s = step_s if self._step_s is None else self._step_s + _SMOOTHING * (step_s - self._step_s)
