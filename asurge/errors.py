"""Every error asurge raises on purpose. A message names the parameter, the value and the remedy.

```text
AsurgeError
├── ConfigError (ValueError)            an engine setting
├── ModelLoadError                      a checkpoint that cannot be served
│   ├── UnknownArchitectureError
│   ├── WeightsError                    missing, damaged or unexpected tensors
│   └── TokenizerError
├── InvalidRequestError (ValueError)    a request's parameter, in ``.param``
│   ├── PromptTooLongError
│   ├── ChatTemplateError
│   └── DuplicateRequestError
├── EngineStateError (RuntimeError)     a verb at the wrong time
│   ├── EngineNotRunningError           not started, or stopped
│   └── EngineDeadError                 the engine failed; ``__cause__`` says how
├── EngineOverloadedError               admission is full; ``.retry_after_s``
├── RequestFailedError                  the step this request was in failed
├── RequestAbortedError                 the request was ended before it had anything to give
├── DeadlineExceededError               the request's deadline passed
├── GuidanceError                       constraints that leave nothing to sample
├── CompilationError (RuntimeError)     a shape that was not compiled ahead of time
└── BenchmarkError                      a measurement that cannot be made
```
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self


class AsurgeError(Exception):
    """Base of all errors raised by asurge."""


class ConfigError(AsurgeError, ValueError):
    """An engine setting has a wrong value, or two settings contradict each other."""


class ModelLoadError(AsurgeError):
    """A checkpoint is missing, damaged or not of a kind that can be served."""


class UnknownArchitectureError(ModelLoadError):
    """``architectures`` in config.json names no family that asurge has."""


class WeightsError(ModelLoadError):
    """Weight files are missing or damaged, or their tensors do not fit the config."""


class TokenizerError(ModelLoadError):
    """The tokenizer is missing or cannot be read."""


class InvalidRequestError(AsurgeError, ValueError):
    """A request is refused before any device work.

    Attributes:
        param: the name of the refused parameter.
    """

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[object, ...]]:
        return partial(type(self), param=self.param), self.args


class PromptTooLongError(InvalidRequestError):
    """The prompt does not fit the context, and the settings forbid cutting it."""


class ChatTemplateError(InvalidRequestError):
    """Messages cannot be rendered: no template, a broken or hostile one, or malformed messages."""


class DuplicateRequestError(InvalidRequestError):
    """A request with this id is still running."""


class EngineStateError(AsurgeError, RuntimeError):
    """The engine is not in the state this verb needs."""


class EngineNotRunningError(EngineStateError):
    """The engine has not started yet, or has stopped."""


class EngineDeadError(EngineStateError):
    """The engine failed and no longer serves; the cause is chained."""

    def again(self) -> Self:
        """Copy the error for another caller. An exception raised again and again keeps the frames of all who got it."""
        fresh = type(self)(*self.args)
        fresh.__cause__ = self.__cause__
        return fresh


class EngineOverloadedError(AsurgeError):
    """Admission is full: nothing was queued.

    Attributes:
        retry_after_s: a sensible time to wait before the next try, in seconds.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[object, ...]]:
        return partial(type(self), retry_after_s=self.retry_after_s), self.args


class RequestFailedError(AsurgeError):
    """The request ended with finish reason ``error``: the step it was part of failed."""


class RequestAbortedError(AsurgeError):
    """The request was ended, by its id or with the engine, before it had anything to give."""


class DeadlineExceededError(AsurgeError):
    """The request did not finish before its deadline; what it had written is void, and its pages are free."""


class GuidanceError(AsurgeError):
    """A grammar failed while its text was written, or constraints leave nothing to sample. Fails its own request only."""


class CompilationError(AsurgeError, RuntimeError):
    """A step asked for a shape that was not compiled at start-up."""


class BenchmarkError(AsurgeError):
    """A measurement cannot be made: no server answers, a package is missing, or nothing completed."""
