"""AWS Signature Version 4 for a GET without a body. Pure.

Owns: the canonical request, the string to sign, the key, the header. Does not own: which host or
region (``s3``). Source: "Signing AWS API requests" of AWS's IAM guide; for S3 the path is encoded
once. Proved by AWS's published vectors in tests/unit/models/test_sigv4.py.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from urllib.parse import SplitResult

EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
_SAFE: Final = "-_.~"
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Key:
    """An access key; the session token is empty for a permanent one."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


def signed_headers(
    url: str, headers: Mapping[str, str], key: Key, region: str, now: datetime, service: str = "s3"
) -> dict[str, str]:
    """Headers that sign a GET of ``url`` sent with ``headers``; ``now`` in UTC."""
    parts, time = urlsplit(url), now.strftime("%Y%m%dT%H%M%SZ")
    added = {"x-amz-date": time}
    if service == "s3":
        added["x-amz-content-sha256"] = EMPTY_SHA256
    if key.session_token:
        added["x-amz-security-token"] = key.session_token
    signed = {"host": _host(parts), **added}
    signed |= {name.lower(): value for name, value in headers.items() if name.lower() == "range"}
    names = ";".join(sorted(signed))
    request = "\n".join(
        (
            "GET",
            parts.path or "/",
            _query(parts.query),
            *(f"{name}:{re.sub(' +', ' ', signed[name].strip())}" for name in sorted(signed)),
            "",
            names,
            EMPTY_SHA256,
        )
    )
    scope = f"{time[:8]}/{region}/{service}/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{time}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    secret = f"AWS4{key.secret_access_key}".encode()
    for part in scope.split("/"):
        secret = hmac.digest(secret, part.encode(), "sha256")
    signature = hmac.new(secret, to_sign.encode(), "sha256").hexdigest()
    credential = f"Credential={key.access_key_id}/{scope}"
    algorithm = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={names}, Signature={signature}"
    return {**added, "Authorization": algorithm}


def _host(parts: SplitResult) -> str:
    """As it is sent: without the port that its scheme has anyway."""
    has_usual_port = parts.port == _PORTS.get(parts.scheme)
    return parts.netloc.rpartition(":")[0] if has_usual_port else parts.netloc


def _query(query: str) -> str:
    pairs = [pair.partition("=")[::2] for pair in query.split("&") if pair]
    encoded = sorted((_encoded(unquote(k)), _encoded(unquote(v))) for k, v in pairs)
    return "&".join(f"{key}={value}" for key, value in encoded)


def _encoded(text: str) -> str:
    return quote(text, safe=_SAFE)
