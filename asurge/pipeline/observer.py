"""Interfaces of observers of steps and requests."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, Protocol

from asurge.containment import contained
from asurge.outputs import FinishReason

if TYPE_CHECKING:
    from asurge.pipeline.generation import Generation
    from asurge.plan import StepPlan

_log = logging.getLogger("asurge.engine")

Stage = Literal["plan", "dispatch", "sample", "device", "apply", "deliver"]
STAGES: tuple[Stage, ...] = ("plan", "dispatch", "sample", "device", "apply", "deliver")


class StepObserver(Protocol):
    """Told of each stage of each step when it is over. Called on the loop and in worker threads; must be quick.

    ``plan``: the scheduler decides. ``dispatch``: packing and sending. ``sample``: masks, and sampling apart. ``device``: the
    device computes, as far as the host can tell. ``apply``: the scheduler takes the result in. ``deliver``: texts.
    """

    def saw(self, stage: Stage, step_id: int, begin_s: float, end_s: float, /) -> None: ...


class RequestObserver(Protocol):
    """Told on the loop what requests gain and how they end; must be quick."""

    def gained(self, tokens: int, since_s: float | None, /) -> None:
        """Note that a sequence gained tokens, ``since_s`` seconds after the previous ones; None: they are its first."""

    def ended(self, generation: Generation, reason: FinishReason, /) -> None:
        """A request is over, with all its completions."""

    def refused(self) -> None:
        """A request found the queue full."""

    def stepped(self, tokens: int, /) -> None:
        """A step computed this many tokens, of prompts and generated ones."""


class Failures:
    """Logs the first failure of each observer; observers that fail are told on: figures are not worth requests."""

    def __init__(self) -> None:
        self._known: list[object] = []

    def note(self, observer: object, error: BaseException) -> None:
        """Take in what an observer raised."""
        contained(error)
        if any(observer is one for one in self._known):
            return
        self._known.append(observer)
        with suppress(Exception):  # of the application's log handlers
            _log.error("the observer %r failed, which is ignored from now on", observer, exc_info=error)

    def forget(self, observer: object) -> None:
        """Log its failures again, if it comes back."""
        self._known = [one for one in self._known if one is not observer]


class StepObservers:
    """The observer of steps, if there is one."""

    def __init__(self) -> None:
        self._observer: StepObserver | None = None
        self._failures = Failures()

    def set(self, observer: StepObserver | None) -> None:
        """Have this one watch from now on; None: nobody."""
        self._failures.forget(self._observer)
        self._observer = observer

    def saw(self, stage: Stage, step_id: int, begin_s: float, end_s: float) -> None:
        """See `StepObserver`."""
        observer = self._observer
        if observer is not None:
            try:
                observer.saw(stage, step_id, begin_s, end_s)
            except BaseException as error:
                self._failures.note(observer, error)


class RequestObservers:
    """Several observers, told as one."""

    def __init__(self) -> None:
        self._observers: tuple[RequestObserver, ...] = ()  # made anew by changes, which observers may cause while told
        self._failures = Failures()

    def __len__(self) -> int:
        return len(self._observers)

    def add(self, observer: RequestObserver) -> None:
        """Tell this one, too."""
        self._observers += (observer,)

    def remove(self, observer: RequestObserver) -> None:
        """Tell it no more."""
        at = next((at for at, one in enumerate(self._observers) if one is observer), len(self._observers))
        self._observers = self._observers[:at] + self._observers[at + 1 :]
        self._failures.forget(observer)

    def gained(self, tokens: int, since_s: float | None) -> None:
        """See `RequestObserver`."""
        self._tell(lambda one: one.gained(tokens, since_s))

    def ended(self, generation: Generation, reason: FinishReason) -> None:
        """See `RequestObserver`."""
        self._tell(lambda one: one.ended(generation, reason))

    def refused(self) -> None:
        """See `RequestObserver`."""
        self._tell(lambda one: one.refused())

    def stepped(self, plan: StepPlan) -> None:
        """See `RequestObserver`. Tokens are only counted if anybody listens."""
        if self._observers:
            tokens = sum([row.num_tokens for row in plan.rows])
            self._tell(lambda one: one.stepped(tokens))

    def _tell(self, tell: Callable[[RequestObserver], None]) -> None:
        for one in self._observers:
            try:
                tell(one)
            except BaseException as error:
                self._failures.note(one, error)
