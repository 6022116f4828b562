"""One line in the log per request, with its id; pure ASGI.

Owns: the request id (taken over or made, told in the answer, on every line of the request), the
access line, the answer to a crash. Does not own: what is in the line's fields, which whoever learns
it notes (``note``): never a text, a key or a tenant's name. Next: ``middleware.BodyLimit``.
"""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

import structlog
from starlette.datastructures import MutableHeaders

from terrace_runtime.api.errors import crash
from terrace_runtime.contract import REQUEST_ID_HEADER
from terrace_runtime.logs import request_id

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = structlog.get_logger("terrace_runtime.http")
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_NOTES: Final = "terrace.notes"


def note(scope: MutableMapping[str, Any], **fields: object) -> None:
    """Put ``fields`` on the access line of the request with this ASGI scope."""
    scope.setdefault(_NOTES, {}).update(fields)


def tenant_mark(tenant: str) -> str:
    """Tells tenants apart in logs without naming them; empty for nobody."""
    return hashlib.sha256(tenant.encode()).hexdigest()[:12] if tenant else ""


class RequestLog:
    """Gives every request an id, says it in the answer, and logs one line at the end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        ours = _request_id(scope)
        token = request_id.set(ours)
        try:
            await self._logged(scope, receive, send, ours)
        finally:
            request_id.reset(token)

    async def _logged(self, scope: Scope, receive: Receive, send: Send, ours: str) -> None:
        started, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = ours
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            _log.exception("crash", request_id=ours)
            if status:
                # Half an answer is out: closing the connection is all that can still be said.
                raise
            await crash().response()(scope, receive, send_with_id)
        finally:
            if scope["path"] not in _QUIET:
                _log.info(
                    "request",
                    request_id=ours,
                    method=scope["method"],
                    path=scope["path"][:256],
                    status=status,
                    duration_ms=round((time.monotonic() - started) * 1000, 1),
                    **scope.get(_NOTES, {}),
                )


def _request_id(scope: Scope) -> str:
    """The caller's id if it is harmless in logs, else a new one; nothing is keyed by it."""
    name = REQUEST_ID_HEADER.encode()
    given = next((value for key, value in scope["headers"] if key == name), b"").decode("latin-1")
    return given if _SAFE_ID.fullmatch(given) else uuid.uuid4().hex
