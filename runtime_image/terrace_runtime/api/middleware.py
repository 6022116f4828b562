"""How large a request's body may be, alone and together with all that are open. Pure ASGI.

Owns: the limits of bodies. Does not own: the request's id and line (``access_log.py``), routes.
Starlette's BaseHTTPMiddleware is not used: it hides a client's leaving from the routes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from terrace_runtime.api.errors import ApiError
from terrace_runtime.contract import MAX_REQUEST_IMAGE_BYTES

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES: Final = 8 * 2**20
_BODY_FLOOR_BYTES: Final = 256 * 1024
_BYTES_PER_TOKEN: Final = 64
"""Far more than any text has; escapes in JSON take up to six bytes for one."""
_TOTAL_FLOOR_BYTES: Final = 4 * 2**20
_IMAGES_BYTES: Final = MAX_REQUEST_IMAGE_BYTES * 4 // 3 + 2**20
"""Of a request's images in base64, and room for how JSON writes it."""

_FORGET: Final = "terrace.forget_body"


class BodyLimit:
    """Refuses bodies over ``max_bytes`` and, together, over ``total_bytes`` of open requests.

    A prompt takes about four times its bytes until it is tokens, and it is held while it waits.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, total_bytes: int, *, takes_images: bool = False
    ) -> None:
        self._app = app
        self._takes_images = takes_images
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
            if int(declared) <= self._max_bytes + MAX_BODY_BYTES:
                await _discard(receive)
            await self._too_large().response()(scope, receive, send)
            return
        held = 0

        async def receive_bounded() -> Message:
            nonlocal held
            message = await receive()
            size = len(message.get("body", b""))
            held += size
            self._open_bytes += size
            if held > self._max_bytes:
                raise self._too_large()
            if self._open_bytes > self._total_bytes:
                raise _too_much(self._total_bytes)
            return message

        def forget(num_bytes: int) -> None:
            nonlocal held
            gone = min(num_bytes, held)
            held -= gone
            self._open_bytes -= gone

        try:
            scope[_FORGET] = forget
            await self._app(scope, receive_bounded, send)
        finally:
            self._open_bytes -= held

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self._max_bytes} bytes"
        if not self._takes_images:
            message += "; images are not taken, for this model's InferenceModel names no projector"
        return ApiError(413, message, code="body_too_large")


def forget_body(scope: Scope, num_bytes: int) -> None:
    """So many bytes of a request's body have become something else and are held no more."""
    if _FORGET in scope:
        scope[_FORGET](num_bytes)


def body_bounds(context_tokens: int, *, takes_images: bool = False) -> tuple[int, int]:
    """Most bytes of one body, and of all open ones: what a prompt of the context can need."""
    one = min(MAX_BODY_BYTES, _BODY_FLOOR_BYTES + _BYTES_PER_TOKEN * context_tokens)
    if takes_images:
        return one + _IMAGES_BYTES, 2 * (one + _IMAGES_BYTES)
    return one, max(one, _TOTAL_FLOOR_BYTES)


async def _discard(receive: Receive) -> None:
    """Read a body away, so that the client reads our answer and not a reset connection."""
    while (await receive()).get("more_body", False):
        pass


def _too_much(limit: int) -> ApiError:
    return ApiError(
        429,
        f"open requests hold {limit} bytes of prompts already; try again",
        code="server_busy",
        retry_after_s=1,
    )
