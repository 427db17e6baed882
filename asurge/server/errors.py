"""Every failure as the HTTP answer that clients of OpenAI's and of Anthropic's API understand."""

from __future__ import annotations

import dataclasses
import math

import orjson

from asurge.errors import (
    AsurgeError,
    DeadlineExceededError,
    EngineOverloadedError,
    EngineStateError,
    GuidanceError,
    InvalidRequestError,
    PromptTooLongError,
    RequestFailedError,
)

_STOPPED_RETRY_S = 5.0
_CHARACTERS = 600


class ApiError(AsurgeError):
    """An error answer of the API.

    Attributes:
        status: the HTTP status.
        kind: OpenAI's ``type``.
        code: OpenAI's ``code``.
        param: the name of the refused parameter.
        retry_after_s: when to try again.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param
        self.retry_after_s = retry_after_s


class RateLimitError(ApiError):
    """A key has used up what it is allowed."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(
            message, status=429, kind="rate_limit_error", code="rate_limit_exceeded", retry_after_s=retry_after_s
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """An error as it is reported: never a traceback, a path, or somebody else's text."""

    message: str
    status: int
    kind: str
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None

    @property
    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}
        return found | {"WWW-Authenticate": "Bearer"} if self.status == 401 else found

    def openai(self) -> bytes:
        """``{"error": {...}}``."""
        body = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": body})

    def anthropic(self, request_id: str) -> bytes:
        """The same in Anthropic's shape."""
        body = {"type": _ANTHROPIC.get(self.status, "api_error"), "message": self.message}
        return orjson.dumps({"type": "error", "error": body, "request_id": request_id})


_ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def failure_of(error: BaseException) -> Failure:
    """Return what to report of an error. One that is not asurge's own is an internal error and no more."""
    text = str(error)
    if len(text) > _CHARACTERS:  # it may quote a request, which may be megabytes
        text = text[:_CHARACTERS] + "…"
    if isinstance(error, RequestFailedError) and isinstance(error.__cause__, GuidanceError):
        return failure_of(error.__cause__)  # of its own form: trying again does not help
    match error:
        case ApiError():
            return Failure(text, error.status, error.kind, error.code, error.param, error.retry_after_s)
        case PromptTooLongError():
            return Failure(text, 400, "invalid_request_error", "context_length_exceeded", error.param)
        case InvalidRequestError():
            return Failure(text, 400, "invalid_request_error", "invalid_value", error.param)
        case GuidanceError():
            return Failure(text, 400, "invalid_request_error", "constraint_failed")
        case EngineOverloadedError():
            return Failure(text, 503, "server_error", "overloaded", None, error.retry_after_s)
        case DeadlineExceededError():
            return Failure(text, 504, "server_error", "deadline_exceeded")
        case EngineStateError():
            return Failure("the engine is not running", 503, "server_error", "unavailable", None, _STOPPED_RETRY_S)
        case AsurgeError():
            return Failure("the request failed; the server goes on: try again", 500, "server_error", "request_failed")
    return Failure("internal error", 500, "server_error", "internal_error")


def cancelled(seconds: float) -> ApiError:
    """Make the error of a request that the server's stop has ended."""
    return ApiError(
        "the server is stopping", status=503, kind="server_error", code="unavailable", retry_after_s=seconds
    )
