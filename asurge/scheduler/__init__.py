"""Choose the requests of the next step, and their pages. Pure Python: no device, no event loop, no clock."""

from asurge.scheduler.reports import SchedulerStatistics, SequenceUpdate
from asurge.scheduler.request import Pace, Request
from asurge.scheduler.scheduler import Scheduler, duplicate

__all__ = ["Pace", "Request", "Scheduler", "SchedulerStatistics", "SequenceUpdate", "duplicate"]
