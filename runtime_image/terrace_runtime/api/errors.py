"""Every error answer of the runtime, in OpenAI's shape.

Owns: ApiError, its JSON, and the translation of foreign errors. Does not own: when they happen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import orjson
from starlette.responses import Response

from terrace_runtime.engine.request import EngineError, InvalidRequestError, QueueFullError

if TYPE_CHECKING:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    from terrace_runtime.contract import RuntimeConfig

_TYPES: Final = {401: "authentication_error", 429: "rate_limit_error"}
_UNPROCESSABLE: Final = 422
_SERVER_ERRORS: Final = 500
_UNAVAILABLE: Final = 503
_TIMEOUT: Final = 504
_PROMPTS: Final = ("prompt", "messages")


class ApiError(Exception):
    """An answer that is not 2xx; raised anywhere before the response has started."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """``message`` is for the client: it names the field, the limit and the way out."""
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def outcome(self) -> str:
        """The metric label: our own code, or that the request itself is at fault."""
        return self.code or "invalid_request"

    def body(self) -> bytes:
        """``{"error": {message, type, param, code}}``."""
        kind = _TYPES.get(self.status)
        if kind is None:
            kind = "server_error" if self.status >= _SERVER_ERRORS else "invalid_request_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})

    def response(self) -> Response:
        """The whole answer."""
        wait = self.retry_after_s
        headers = {} if wait is None else {"retry-after": str(max(1, min(wait, 120)))}
        return Response(self.body(), self.status, headers, media_type="application/json")

    def event(self) -> bytes:
        """One SSE event that makes clients raise; the stream ends after it, without [DONE]."""
        return b"data: " + self.body() + b"\n\n"


def unavailable(message: str, code: str, retry_after_s: int = 5) -> ApiError:
    """503: nothing is wrong with the request, another replica or a later time will do."""
    return ApiError(_UNAVAILABLE, message, code=code, retry_after_s=retry_after_s)


def timed_out(timeout_s: float | None, config: RuntimeConfig) -> ApiError:
    """504: the request is older than it may be."""
    bound = config.request_timeout_s
    if timeout_s is not None and timeout_s <= bound:
        message, param = f"the request's own timeout of {timeout_s:g} s has passed", "timeout"
    else:
        message, param = f"the request took longer than {bound:g} s, the most allowed here", None
    return ApiError(_TIMEOUT, message, param=param, code="timeout")


def from_engine(error: QueueFullError | InvalidRequestError | EngineError) -> ApiError:
    """What an engine's refusal means on the wire."""
    if isinstance(error, QueueFullError):
        return ApiError(
            429,
            f"{error}; try again later",
            code="queue_full",
            retry_after_s=error.retry_after_s,
        )
    if isinstance(error, InvalidRequestError):
        # A grammar's error quotes the client, who may well speak of a context.
        is_too_long = error.param in _PROMPTS and "context" in str(error)
        code = "context_length_exceeded" if is_too_long else None
        return ApiError(400, str(error), param=error.param, code=code)
    return ApiError(_SERVER_ERRORS, f"the engine failed: {error}", code="engine_error")


def unanswered(why: str, param: str) -> ApiError:
    """422: the engine is well, and what ``param`` asks for would end like this again."""
    return ApiError(_UNPROCESSABLE, why, param=param, code="generation_failed")


def crash() -> ApiError:
    """What nobody foresaw; the traceback is in the log, not on the wire."""
    return ApiError(_SERVER_ERRORS, "internal error", code="internal_error")


async def on_api_error(_: Request, error: Exception) -> Response:
    """Answer an ApiError."""
    assert isinstance(error, ApiError)
    return error.response()


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer the router's own 404 and 405."""
    found = cast("HTTPException", error)  # registered for this type alone
    path = request.url.path[:200]
    message, code = {
        404: (f"there is no {path} here", "not_found"),
        405: (f"{request.method[:16]} is not possible on {path}", "method_not_allowed"),
    }.get(found.status_code, (str(found.detail), None))
    response = ApiError(found.status_code, message, code=code).response()
    if found.headers:
        response.headers.update(found.headers)
    return response
