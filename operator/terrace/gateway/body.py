"""The request body: read within bounds, looked into for ``model``, otherwise left as it is.

Owns: the bounds on size and time of reading, and the one field the gateway reads. Does not own:
any other validation; that is the replica's, which gets the original bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import orjson

from terrace.gateway.errors import ApiError
from terrace.gateway.headers import Headers, first

if TYPE_CHECKING:
    from terrace.gateway.limits import Hold, Limits

Receive = Callable[[], Awaitable[Any]]
MAX_MODEL_CHARS = 256
MAX_JSON_VALUES = 1_000_000
"""Parsing more would hold up everybody for longer than a tenth of a second, and take 60 bytes
each. Counted by the characters that begin or separate values, also where they are text."""


class ClientGoneError(Exception):
    """The client left; nobody reads an answer any more."""


async def read_body(receive: Receive, headers: Headers, limits: Limits, hold: Hold) -> bytes:
    """The whole body.

    Raises:
        ApiError: 413 too large, 408 too slow, 429 no room.
        ClientGoneError: the client left before the end.
    """
    declared = first(headers, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise _too_large(limits)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limits.max_body_bytes:
                    raise _too_large(limits)
                hold.grow(len(chunk))
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        took = f"The request body took longer than {limits.body_timeout_s:g} s."
        raise ApiError(408, took, "request_timeout") from None


def requested_model(body: bytes) -> str:
    """The ``model`` field of a JSON body.

    Raises:
        ApiError: 400, and why.
    """
    if len(body) > MAX_JSON_VALUES and sum(map(body.count, (b"[", b"{", b","))) > MAX_JSON_VALUES:
        why = f"The request body may hold at most {MAX_JSON_VALUES} JSON values."
        raise ApiError(400, why, "too_many_values")
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(
            400, f"The request body is not valid JSON: {error}", "invalid_json"
        ) from None
    if not isinstance(parsed, dict):
        raise ApiError(400, "The request body must be a JSON object.", "invalid_json")
    model = parsed.get("model")
    if not isinstance(model, str) or not model:
        why = "The field model must be the name of a model, see GET /v1/models."
        raise ApiError(400, why, "missing_model" if model is None else "invalid_model", "model")
    if len(model) > MAX_MODEL_CHARS:
        why = f"The field model may have at most {MAX_MODEL_CHARS} characters."
        raise ApiError(400, why, "invalid_model", "model")
    return model


def _too_large(limits: Limits) -> ApiError:
    most = f"{limits.max_body_bytes} bytes ({limits.max_body_bytes / 2**20:g} MiB)"
    return ApiError(413, f"The request body may have at most {most}.", "request_too_large")
