"""Why a completion stopped, as OpenAI's API reports it."""

from __future__ import annotations

from asurge.outputs import CompletionOutput
from asurge.server.schema.sampling import Sampling


def stop_reason_of(one: CompletionOutput, body: Sampling) -> str | int | None:
    """The stop string or token that the request named and that ended a completion; None where the model ended it."""
    reason = one.stop_reason
    return None if isinstance(reason, int) and reason not in (body.stop_token_ids or ()) else reason
