"""Says to replicas who asks: a short-lived token in ``contract.IDENTITY_HEADER``.

Owns: the signing key and the tokens. Does not own: where tenant and priority come from
(``proxy.py``) or their check (the runtime). Signing costs about 0.1 ms, so a token serves all
requests that say the same for a few seconds.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc import jws
from joserfc.jwk import OKPKey

from terrace_runtime.contract import Identity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from terrace.api.names import Key

KEY_BYTES = 32
TOKEN_LIFE_S = 60
REUSE_S = 5.0
MAX_TOKENS = 4096
ALGORITHM = "Ed25519"
"""RFC 9864's name of EdDSA over this curve."""

Priority = Literal["interactive", "batch"]


class TrustKeyError(Exception):
    """The key file is missing or is not what the operator writes."""


class Signer:
    """Makes identity tokens; ``clock`` is wall time in seconds since the epoch."""

    def __init__(self, private_key: bytes, clock: Callable[[], float]) -> None:
        """``private_key``: the raw 32 bytes of an Ed25519 key."""
        key = Ed25519PrivateKey.from_private_bytes(private_key)
        self._key = OKPKey.import_key(key)
        self._clock = clock
        self._tokens: dict[tuple[str, Priority, Key], tuple[float, str]] = {}

    def token(self, tenant: str, priority: Priority, model: Key) -> str:
        """A compact JWS over the Identity, good for at least a minute less the time of reuse."""
        now = self._clock()
        wanted = (tenant, priority, model)
        fresh_until, token = self._tokens.get(wanted, (0.0, ""))
        if now < fresh_until <= now + REUSE_S:
            return token
        if len(self._tokens) >= MAX_TOKENS:
            self._tokens.clear()
        token = self._sign(tenant, priority, model, int(now) + TOKEN_LIFE_S)
        self._tokens[wanted] = (now + REUSE_S, token)
        return token

    def _sign(self, tenant: str, priority: Priority, model: Key, exp: int) -> str:
        identity = Identity(tenant=tenant, priority=priority, model=str(model), exp=exp)
        payload = identity.model_dump_json().encode()
        return jws.serialize_compact({"alg": ALGORITHM}, payload, self._key, [ALGORITHM])


def read_private_key(path: Path) -> bytes:
    """The raw key from a file that holds it as base64url without padding.

    Raises:
        TrustKeyError: the file cannot be read or holds something else.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
        key = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (OSError, UnicodeDecodeError, binascii.Error) as error:
        raise TrustKeyError(f"The signing key {path} cannot be read: {error}") from error
    if len(key) != KEY_BYTES:
        raise TrustKeyError(f"The signing key {path} holds {len(key)} bytes instead of {KEY_BYTES}")
    return key
