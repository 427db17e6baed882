"""`Program`: a function of the device, compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax

from asurge.errors import CompilationError


class Program:
    """A compiled function of the device for one shape of its inputs.

    Args:
        shape: what tells it apart from the runner's others; errors name it.
        function: to be compiled.
        arguments: what it is compiled for: arrays, or their shapes.
        donated: indices of the arguments that it may overwrite.
    """

    def __init__(
        self, shape: Hashable, function: Callable[..., Any], arguments: Sequence[Any], donated: Sequence[int] = ()
    ) -> None:
        self.shape = shape
        self._function, self._arguments, self._donated = function, tuple(arguments), tuple(donated)
        self._compiled: jax.stages.Compiled | None = None

    def lower(self) -> jax.stages.Lowered:
        """Trace it."""
        lowered = jax.jit(self._function, donate_argnums=self._donated).lower(*self._arguments)
        self._arguments = ()  # the weights among them may be freed, and others come in their place
        return lowered

    def use(self, compiled: jax.stages.Compiled) -> None:
        """Take what it was compiled to."""
        self._compiled = compiled

    def __call__(self, *arguments: Any) -> Any:
        """Dispatch it.

        Raises:
            CompilationError: it was not compiled.
        """
        if self._compiled is None:
            raise CompilationError(f"{self.shape} was not compiled at start-up")
        return self._compiled(*arguments)
