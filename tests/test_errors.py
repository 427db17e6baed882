"""Errors travel: between processes, and as copies."""

from __future__ import annotations

import copy
import pickle

import pytest

from asurge import errors

KINDS = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, errors.AsurgeError)]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_can_be_copied_and_sent_to_other_processes(kind: type[errors.AsurgeError]) -> None:
    given: dict[str, object] = {}
    if issubclass(kind, errors.InvalidRequestError):
        given["param"] = "prompt"
    elif issubclass(kind, errors.EngineOverloadedError):
        given["retry_after_s"] = 2.0
    error = kind("a message", **given)
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is kind
        assert (str(again), vars(again)) == ("a message", given)
