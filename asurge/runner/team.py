"""The threads behind the CPU kernels: one team for the process, whatever engines run in it."""

from __future__ import annotations

import dataclasses
import logging
import threading
import weakref
from collections.abc import Callable

from asurge.ops import native
from asurge.processors import ProcessorProbe, ThreadBudget

_log = logging.getLogger(__name__)


class Team:
    """Keeps the team as large as the largest that an engine asks for, and within the quota of processor time.

    While no engine asks, the processors say how large the team is.

    Args:
        resize: sets the size.
        alone: the size while no engine asks.
        set_quota: sets the processors whose time the process may use, None for no limit.
    """

    def __init__(
        self, resize: Callable[[int], None], alone: Callable[[], int], set_quota: Callable[[float | None], None]
    ) -> None:
        self._resize, self._alone, self._set_quota = resize, alone, set_quota
        self._budgets = weakref.WeakSet[ThreadBudget]()  # an engine that nobody has stopped may be forgotten
        self._lock = threading.Lock()
        self.size = 0
        self._quota: float | None = None

    def join(self, budget: ThreadBudget) -> None:
        """Let an engine have as many threads as its budget says."""
        with self._lock:
            self._budgets.add(budget)
            self._fit()

    def leave(self, budget: ThreadBudget) -> None:
        """An engine needs them no longer. Safe to call twice."""
        with self._lock:
            if budget in self._budgets:
                self._budgets.remove(budget)
                self._fit()

    def refresh(self) -> None:
        """Follow what has become of the processors, also for engines that have nothing to do: what they ask for must be there."""
        with self._lock:
            if any([budget.refresh() for budget in self._budgets]):
                self._fit()

    def _fit(self) -> None:
        size = max((budget.threads for budget in self._budgets), default=0) or self._alone()
        if size != self.size:
            self._resize(size)
            self.size = size
        quota = min((budget.time_limit for budget in self._budgets if budget.time_limit is not None), default=None)
        if quota != self._quota:
            self._set_quota(quota)
            self._quota = quota


_TEAM = Team(native.set_threads, lambda: ProcessorProbe().look().count, native.set_quota)


@dataclasses.dataclass(frozen=True, slots=True)
class TeamStatistics:
    """The kernels' threads, of all engines of the process.

    Attributes:
        threads / active: that there are, and that take part at present: as many as pay beside the other work of the machine.
        waited_s: how long callers have waited for others since the start.
        put_aside: how often a thread that the system had put aside in the middle of its work was given another processor.
        quota_sleep_s: how long callers have slept to stay within a quota of processor time.
    """

    threads: int = 0
    active: int = 0
    waited_s: float = 0.0
    put_aside: int = 0
    quota_sleep_s: float = 0.0


class KernelThreads:
    """An engine's part in the team, from its start to `leave`.

    Args:
        kernels: which the engine may use (`EngineConfig.kernels`); without those for CPUs, it has no part.
        niceness: of the team's threads from now on; None leaves it.
    """

    def __init__(self, budget: ThreadBudget, kernels: str, niceness: int | None = None, *, team: Team = _TEAM) -> None:
        self.budget, self._team = budget, team
        wanted = kernels in ("auto", "native")
        if wanted:  # first of all: where kernels are loaded now, the team must not be larger to begin with
            team.join(budget)
        self._used = wanted and native.unavailable() is None
        if self._used and niceness is not None and not native.set_niceness(niceness):
            _log.warning("kernel_nice=%d is less than the kernels' threads have: they stay as they are", niceness)

    @property
    def count(self) -> int:
        """Threads in the team, which other engines of the process may have made larger; 0 if this one does not use it."""
        return self._team.size if self._used else 0

    def statistics(self) -> TeamStatistics:
        """Counters of the kernels' thread pool; all 0 if this engine does not use it."""
        pool = native.pool_statistics() if self._used else None
        if pool is None:
            return TeamStatistics()
        return TeamStatistics(
            self.count, pool.active, pool.waited_ns / 1e9, pool.rescues + pool.swaps, pool.quota_sleep_ns / 1e9
        )

    def refresh(self) -> None:
        """Follow what has become of the processors. Cheap: called before each step."""
        if self._used and self.budget.is_due:
            self._team.refresh()

    def leave(self) -> None:
        """The engine ends. Safe to call twice."""
        self._team.leave(self.budget)
