"""Choose the size of a dispatch: decode steps in a group, and prompt tokens beside rows that decode."""

from __future__ import annotations

from asurge.plan import StepPlan
from asurge.scheduler import Pace

GROUP_S = 0.025
"""Seconds a group may take: tokens come that far apart, and a new request waits that long at most."""

UNREAD_GROUP_S = 0.25
"""The bound where nobody reads tokens as they come: a new request waits as long for a batch's prompts."""

LEAST_SHARE = 0.5
"""The least time that prompts beside decoding get, as a share of the time that decoding takes."""

_SMOOTHING = 0.2


class Pacer:
    """Learns from the device's times how much fits into one dispatch.

    Groups steps that are short compared with `GROUP_S`, so that the host's work is shared among them. A group hides the host's
    time, but its tokens arrive together and admit nobody in between: where a step takes long by itself, there is little
    to gain and it stays alone, unless nobody reads along.

    Bounds the prompt tokens beside rows that decode, which wait for them (stall-free batching, Sarathi-Serve, Agrawal et
    al. 2024): a step takes at most ``mixed_s``, or half as long again as decoding alone, so that requests waiting for a first
    token get a third of the device.
    """

    def __init__(
        self, group_s: float = GROUP_S, mixed_s: float | None = None, *, unread_group_s: float = UNREAD_GROUP_S
    ) -> None:
        self._group_s, self._unread_group_s, self._mixed_s = group_s, unread_group_s, mixed_s
        self._step_s: float | None = None
        self._token_s: float | None = None

    @property
    def pace(self) -> Pace:
        """Return bounds on the next step; the scheduler and the device bound it further."""
        return Pace(self._decode_steps(self._group_s), self._decode_steps(self._unread_group_s), self._prompt_tokens())

    def _decode_steps(self, group_s: float) -> int:
        return 1 if not self._step_s else max(1, int(group_s / self._step_s))

    def _prompt_tokens(self) -> int | None:
        if self._mixed_s is None or not self._step_s or not self._token_s:
            return None
        return int(max(self._mixed_s - self._step_s, LEAST_SHARE * self._step_s) / self._token_s)

    def see(self, plan: StepPlan, device_time_s: float) -> None:
        """Take in how long the device took for a plan."""
        tokens = sum(row.num_tokens for row in plan.prefill)
        if not tokens:
            self._step_s = _smoothed(self._step_s, device_time_s / plan.decode_steps)
        else:
            beside_s = (self._step_s or 0.0) if plan.decode else 0.0
            self._token_s = _smoothed(self._token_s, max(device_time_s - beside_s, 0.0) / tokens)


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else before + _SMOOTHING * (now - before)
