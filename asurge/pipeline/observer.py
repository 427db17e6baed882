"""What may watch steps and requests go by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from asurge.outputs import FinishReason

if TYPE_CHECKING:
    from asurge.pipeline.generation import Generation
    from asurge.plan import StepPlan

Stage = Literal["plan", "dispatch", "draw", "device", "apply", "deliver"]
STAGES: tuple[Stage, ...] = ("plan", "dispatch", "draw", "device", "apply", "deliver")


class StepObserver(Protocol):
    """Told of each stage of each step when it is over. Called on the loop and in worker threads; must be quick.

    ``plan``: the scheduler decides. ``dispatch``: packing and sending. ``draw``: masks and draws apart. ``device``: the
    device computes, as far as the host can tell. ``apply``: the scheduler takes the result in. ``deliver``: texts.
    """

    def saw(self, stage: Stage, step_id: int, begin_s: float, end_s: float, /) -> None: ...


class RequestObserver(Protocol):
    """Told on the loop what requests gain and how they end; must be quick."""

    def gained(self, tokens: int, since_s: float | None, /) -> None:
        """One sequence gained tokens, ``since_s`` seconds after the previous ones; None: they are its first."""

    def ended(self, generation: Generation, reason: FinishReason, /) -> None:
        """A request is over, with all its completions."""

    def refused(self) -> None:
        """A request found the queue full."""

    def stepped(self, tokens: int, /) -> None:
        """A step computed this many tokens, of prompts and generated ones."""


class RequestObservers(list[RequestObserver]):
    """Several observers, told as one."""

    def gained(self, tokens: int, since_s: float | None) -> None:
        """See `RequestObserver`."""
        for one in self:
            one.gained(tokens, since_s)

    def ended(self, generation: Generation, reason: FinishReason) -> None:
        """See `RequestObserver`."""
        for one in self:
            one.ended(generation, reason)

    def refused(self) -> None:
        """See `RequestObserver`."""
        for one in self:
            one.refused()

    def stepped(self, plan: StepPlan) -> None:
        """See `RequestObserver`. Tokens are only counted if anybody listens."""
        if self:
            tokens = sum([row.num_tokens for row in plan.rows])
            for one in self:
                one.stepped(tokens)
