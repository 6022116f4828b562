"""What happens around every request: its id, its size, its log line. Pure ASGI.

Owns: the request id header, the body limit, the access log, the answer to a crash. Does not own:
routes. Starlette's BaseHTTPMiddleware is not used: it hides a client's leaving from the routes.
"""

from __future__ import annotations

import re
import time
import uuid
from typing import TYPE_CHECKING, Final

import structlog
from starlette.datastructures import MutableHeaders

from terrace_runtime.api.errors import ApiError, crash
from terrace_runtime.contract import REQUEST_ID_HEADER

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES: Final = 8 * 2**20
_BODY_FLOOR_BYTES: Final = 256 * 1024
_BYTES_PER_TOKEN: Final = 64
"""Far more than any text has; escapes in JSON take up to six bytes for one."""
_TOTAL_FLOOR_BYTES: Final = 4 * 2**20
_log = structlog.get_logger("terrace_runtime.http")
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})


class RequestLog:
    """Gives every request an id, says it in the answer, and logs one line at the end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        started, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            _log.exception("crash", id=request_id)
            if status:
                # Half an answer is out: closing the connection is all that can still be said.
                raise
            await crash().response()(scope, receive, send_with_id)
        finally:
            if scope["path"] not in _QUIET:
                _log.info(
                    "request",
                    id=request_id,
                    method=scope["method"],
                    path=scope["path"][:256],
                    status=status,
                    seconds=round(time.monotonic() - started, 4),
                )


class BodyLimit:
    """Refuses bodies over ``max_bytes`` and, together, over ``total_bytes`` of open requests.

    A prompt takes about four times its bytes until it is tokens, and it is held while it waits.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, total_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._total_bytes = total_bytes
        self._open_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        if declared.isdigit() and int(declared) > self._max_bytes:
            if int(declared) <= MAX_BODY_BYTES:
                await _discard(receive)
            await _too_large(self._max_bytes).response()(scope, receive, send)
            return
        seen = 0

        async def receive_bounded() -> Message:
            nonlocal seen
            message = await receive()
            size = len(message.get("body", b""))
            seen += size
            self._open_bytes += size
            if seen > self._max_bytes:
                raise _too_large(self._max_bytes)
            if self._open_bytes > self._total_bytes:
                raise _too_much(self._total_bytes)
            return message

        try:
            await self._app(scope, receive_bounded, send)
        finally:
            self._open_bytes -= seen


def body_bounds(context_tokens: int) -> tuple[int, int]:
    """Most bytes of one body, and of all open ones: what a prompt of the context can need."""
    one = min(MAX_BODY_BYTES, _BODY_FLOOR_BYTES + _BYTES_PER_TOKEN * context_tokens)
    return one, max(one, _TOTAL_FLOOR_BYTES)


async def _discard(receive: Receive) -> None:
    """Read a body away, so that the client reads our answer and not a reset connection."""
    while (await receive()).get("more_body", False):
        pass


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes", code="body_too_large")


def _too_much(limit: int) -> ApiError:
    return ApiError(
        429,
        f"open requests hold {limit} bytes of prompts already; try again",
        code="server_busy",
        retry_after_s=1,
    )


def _request_id(scope: Scope) -> str:
    """The caller's id if it is harmless in logs, else a new one; nothing is keyed by it."""
    name = REQUEST_ID_HEADER.encode()
    given = next((value for key, value in scope["headers"] if key == name), b"").decode("latin-1")
    return given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
