"""Which requests run in the next step, and on which pages. Pure Python: no device, no event loop, no clock."""

from asurge.scheduler.planner import Scheduler, duplicate
from asurge.scheduler.reports import SchedulerStatistics, Update
from asurge.scheduler.request import Pace, Request

__all__ = ["Pace", "Request", "Scheduler", "SchedulerStatistics", "Update", "duplicate"]
