"""The threads behind the CPU kernels: one team for the process, whatever engines run in it."""

from __future__ import annotations

import dataclasses
import logging
import threading
import weakref
from collections.abc import Callable, Collection
from typing import Protocol

from asurge.ops import native
from asurge.processors import ProcessorProbe, ThreadBudget

_log = logging.getLogger(__name__)


class Pool(Protocol):
    """The kernels' threads (`asurge.ops.native`)."""

    def set_threads(self, count: int) -> None:
        """Set their number."""

    def set_quota(self, processors: float | None) -> None:
        """Set the processors whose time the process may use."""

    def set_loop_threads(self, ids: Collection[int]) -> None:
        """Set the threads of event loops, which the kernels' threads yield to."""


class Team:
    """Fits the kernels' threads to the engines of the process: their number, quota and event loops.

    The team is as large as the largest that an engine requests; while none does, the processors say how large it is.

    Args:
        pool: the kernels' threads.
        alone: the size while no engine is there.
    """

    def __init__(self, pool: Pool, alone: Callable[[], int]) -> None:
        self._pool, self._alone = pool, alone
        # Each engine's budget and the thread of its event loop, if that is known. Who forgets to stop an engine may drop it.
        self._members = weakref.WeakKeyDictionary[ThreadBudget, int | None]()
        self._lock = threading.Lock()
        self.size = 0
        self._quota: float | None = None
        self._loops: set[int] = set()

    def join(self, budget: ThreadBudget, loop_thread: int | None = None) -> None:
        """Let an engine have as many threads as its budget says, or say which thread runs its event loop."""
        with self._lock:
            self._members[budget] = loop_thread
            self._fit()

    def leave(self, budget: ThreadBudget) -> None:
        """Take an engine out, which needs them no longer. Safe to call twice."""
        with self._lock:
            if budget in self._members:
                del self._members[budget]
                self._fit()

    def refresh(self) -> None:
        """Look at the processors again, for all engines: also one that has nothing to do holds threads."""
        with self._lock:
            if any([budget.refresh() for budget in self._members]):
                self._fit()

    def _fit(self) -> None:
        size = max((budget.threads for budget in self._members), default=0) or self._alone()
        if size != self.size:
            self._pool.set_threads(size)
            self.size = size
        quota = min((budget.time_limit for budget in self._members if budget.time_limit is not None), default=None)
        if quota != self._quota:
            self._pool.set_quota(quota)
            self._quota = quota
        loops = {loop for loop in self._members.values() if loop is not None}
        if loops != self._loops:
            self._pool.set_loop_threads(loops)
            self._loops = loops


_TEAM = Team(native, lambda: ProcessorProbe().look().count)


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

    def __init__(
        self, budget: ThreadBudget, kernels: str, niceness: int | None = None, *, team: Team | None = None
    ) -> None:
        self.budget, self._team = budget, team or _TEAM
        wanted = kernels in ("auto", "native")
        if wanted:  # first of all: where kernels are loaded now, the team must not be larger to begin with
            self._team.join(budget)
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

    def yield_to(self, loop_thread: int) -> None:
        """Have the kernels yield to the thread that runs the engine's event loop, for as long as it computes.

        Args:
            loop_thread: its native identifier (`threading.get_native_id`).
        """
        if self._used:
            self._team.join(self.budget, loop_thread)

    def refresh(self) -> None:
        """Follow what has become of the processors. Cheap: called before each step."""
        if self._used and self.budget.is_due:
            self._team.refresh()

    def leave(self) -> None:
        """The engine ends. Safe to call twice."""
        self._team.leave(self.budget)
