"""The engine: its life cycle, admission, and what callers hold."""

from asurge.engine.engine import Engine
from asurge.engine.stream import TokenStream

__all__ = ["Engine", "TokenStream"]
