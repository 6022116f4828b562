"""Which headers pass through the gateway, and which it makes.

Owns: stripping (hop-by-hop, identity, credentials), the request id, the priority. Does not own:
their transport. Pure.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import get_args

from terrace.gateway.errors import ApiError
from terrace.gateway.identity import Priority
from terrace_runtime import contract

Headers = Iterable[tuple[bytes, bytes]]
RawHeaders = list[tuple[bytes, bytes]]

OUR_PREFIX = b"x-terrace-"
PRIORITY_HEADER = b"x-terrace-priority"
REQUEST_ID = contract.REQUEST_ID_HEADER.encode()
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

# RFC 9110 section 7.6.1, and what older proxies use.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization "
    b"te trailer transfer-encoding upgrade".split()
)
# Credentials are the gateway's business: replicas trust the identity header alone.
_NOT_TO_REPLICAS = _HOP_BY_HOP | frozenset(
    b"host content-length expect authorization api-key x-api-key cookie".split()
)
_NOT_TO_CLIENTS = _HOP_BY_HOP | {b"date", b"server", b"set-cookie", REQUEST_ID}


def first(headers: Headers, wanted: bytes) -> bytes | None:
    """The first value of a header; names are lower case."""
    return next((value for name, value in headers if name == wanted), None)


def request_id(headers: Headers) -> str:
    """The client's own id if it is short and plain (it goes into logs), else a new one."""
    given = first(headers, REQUEST_ID)
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return secrets.token_hex(16)


def priority(headers: Headers) -> Priority:
    """How urgent the client says its request is.

    Raises:
        ApiError: 400, the header holds something else.
    """
    given = first(headers, PRIORITY_HEADER)
    match given:
        case None | b"interactive":
            return "interactive"
        case b"batch":
            return "batch"
        case _:
            known = " or ".join(get_args(Priority))
            name = PRIORITY_HEADER.decode()
            raise ApiError(400, f"The header {name} must be {known}.", "invalid_priority", name)


def to_replica(headers: Headers, request_id: str, identity: str | None) -> list[tuple[str, str]]:
    """Headers of the request to the replica: the client's without ours, then ours."""
    headers = list(headers)
    dropped = _NOT_TO_REPLICAS | _named_by_connection(headers) | {REQUEST_ID}
    passed = [
        (name.decode("ascii"), value.decode("ascii"))
        for name, value in headers
        if name not in dropped and not name.startswith(OUR_PREFIX) and value.isascii()
    ]
    passed.append((contract.REQUEST_ID_HEADER, request_id))
    if identity is not None:
        passed.append((contract.IDENTITY_HEADER, identity))
    return passed


def to_client(headers: Headers) -> RawHeaders:
    """Headers of the answer: the replica's, less what belongs to the other connection."""
    lowered = [(name.lower(), value) for name, value in headers]
    dropped = _NOT_TO_CLIENTS | _named_by_connection(lowered)
    return [(name, value) for name, value in lowered if name not in dropped]


def _named_by_connection(headers: Headers) -> frozenset[bytes]:
    return frozenset(
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    )
