"""The threads behind the CPU kernels: one team for the process, whatever engines run in it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from asurge.ops import native
from asurge.processors import ProcessorProbe, ThreadBudget


class Team:
    """Keeps the team as large as the largest that an engine asks for. While none asks, the processors say how large it is.

    Args:
        resize: sets the size.
        alone: the size while no engine asks.
    """

    def __init__(self, resize: Callable[[int], None], alone: Callable[[], int]) -> None:
        self._resize, self._alone = resize, alone
        self._asked: dict[ThreadBudget, int] = {}
        self._lock = threading.Lock()
        self.size = 0

    def ask(self, budget: ThreadBudget) -> None:
        """Let an engine have as many threads as its budget says now."""
        with self._lock:
            self._asked[budget] = budget.threads
            self._fit()

    def leave(self, budget: ThreadBudget) -> None:
        """An engine needs them no longer. Safe to call twice."""
        with self._lock:
            if self._asked.pop(budget, None) is not None:
                self._fit()

    def _fit(self) -> None:
        size = max(self._asked.values()) if self._asked else self._alone()
        if size != self.size:
            self._resize(size)
            self.size = size


_TEAM = Team(native.set_threads, lambda: ProcessorProbe().look().count)


class KernelThreads:
    """An engine's part in the team, from its start to `leave`.

    Args:
        kernels: which the engine may use (`EngineConfig.kernels`); without those for CPUs, it has no part.
    """

    def __init__(self, budget: ThreadBudget, kernels: str, team: Team = _TEAM) -> None:
        self.budget, self._team = budget, team
        wanted = kernels in ("auto", "native")
        if wanted:  # first of all: where kernels are loaded now, the team must not be larger to begin with
            team.ask(budget)
        self._used = wanted and native.unavailable() is None

    @property
    def count(self) -> int:
        """Threads in the team, which other engines of the process may have made larger; 0 if this one does not use it."""
        return self._team.size if self._used else 0

    def refresh(self) -> None:
        """Follow what has become of the processors. Cheap: called before each step."""
        if self.budget.refresh() and self._used:
            self._team.ask(self.budget)

    def leave(self) -> None:
        """The engine ends. Safe to call twice."""
        self._team.leave(self.budget)
