"""Keeps what fails in code that was handed in (tokenizers, grammars, observers) away from those it does not concern."""

from __future__ import annotations


def contained(error: BaseException) -> BaseException:
    """Return an error of synchronous code that is not the engine's own, which ends whatever it was called for and no more.

    Panics of libraries in Rust are no Exceptions. A CancelledError means nothing either: only coroutines are cancelled, so
    it comes from a future that this code has looked at. Only what is meant to end the process is raised again.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    return error
