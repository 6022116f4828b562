"""Every error answer of the gateway, in OpenAI's shape.

Owns: statuses, types, codes and the JSON. Does not own: when they happen (``proxy.py``,
``app.py``). Pure. Errors of a replica pass through untouched and never come here.
"""

from __future__ import annotations

from dataclasses import dataclass

import orjson


@dataclass(eq=False)  # not frozen: Python itself sets attributes of a raised exception
class ApiError(Exception):
    """An answer that is not 2xx; raised anywhere before the response has started."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after_s: int | None = None
    allow: str | None = None
    """Methods of the path, for 405."""

    def body(self) -> bytes:
        """The JSON of the answer."""
        return error_body(self.status, self.message, self.code, self.param)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the answer beyond type and length."""
        found: list[tuple[bytes, bytes]] = []
        if self.retry_after_s is not None:
            found.append((b"retry-after", str(self.retry_after_s).encode()))
        if self.allow is not None:
            found.append((b"allow", self.allow.encode()))
        return found


def error_body(status: int, message: str, code: str, param: str | None = None) -> bytes:
    """``{"error": {message, type, param, code}}``."""
    error = {"message": message, "type": _type_of(status), "param": param, "code": code}
    return orjson.dumps({"error": error})


def error_event(message: str, code: str) -> bytes:
    """One SSE event that makes clients raise; the stream ends after it, without ``[DONE]``."""
    return b"data: " + error_body(502, message, code) + b"\n\n"


def _type_of(status: int) -> str:
    match status:
        case 429:
            return "rate_limit_error"
        case 503:
            return "service_unavailable_error"
        case _ if status >= 500:  # noqa: PLR2004 - the class of statuses
            return "server_error"
        case _:
            return "invalid_request_error"
