"""The only owner of device state: weights, KV pages, slots, and the compiled steps."""

from asurge.runner.compilation import use_persistent_cache
from asurge.runner.runner import DeviceRunner
from asurge.runner.step import Leaves, leaves_of
from asurge.runner.team import KernelThreads

__all__ = ["DeviceRunner", "KernelThreads", "Leaves", "leaves_of", "use_persistent_cache"]
