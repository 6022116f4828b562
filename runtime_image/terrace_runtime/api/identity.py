"""Who asks: reads the header that the gateway signs.

Owns: verification of contract.IDENTITY_HEADER. Does not own: signing (the gateway) or what tenant
and priority do (the engine). No header means anonymous; a bad one is refused, never ignored.
"""

from __future__ import annotations

import base64
import binascii
import time
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey
from pydantic import ValidationError

from terrace_runtime.api.errors import ApiError
from terrace_runtime.contract import Identity

if TYPE_CHECKING:
    from collections.abc import Callable

ALGORITHM: Final = "Ed25519"
MAX_HEADER_BYTES: Final = 4096
PRIORITIES: Final = {"interactive": 0, "batch": 1}


class IdentityVerifier:
    """Checks headers against one public key."""

    def __init__(self, trust_key: str, clock: Callable[[], float] = time.time) -> None:
        """``trust_key``: base64url of the raw public key; raises ValueError when it is none."""
        self._key: OKPKey | None = None
        self._clock = clock
        if trust_key:
            try:
                raw = base64.b64decode(
                    trust_key + "=" * (-len(trust_key) % 4), altchars=b"-_", validate=True
                )
                self._key = OKPKey.import_key(Ed25519PublicKey.from_public_bytes(raw))
            except (binascii.Error, ValueError) as error:
                raise ValueError(f"trust_key is not an Ed25519 public key: {error}") from None

    def verify(self, header: str | None) -> Identity | None:
        """The claims of ``header``, ``None`` without one; raises ApiError (401)."""
        if header is None:
            return None
        if self._key is None:
            raise _refused("this replica knows no key that signs identities")
        if len(header) > MAX_HEADER_BYTES:
            raise _refused("it is too long")
        try:
            token = jws.deserialize_compact(header, self._key, algorithms=[ALGORITHM])
            identity = Identity.model_validate_json(token.payload)
        except (JoseError, ValueError, ValidationError):
            raise _refused("its signature or its content is not valid") from None
        if identity.exp <= self._clock():
            raise _refused("it is expired")
        return identity


def _refused(why: str) -> ApiError:
    return ApiError(401, f"the identity header is refused: {why}", code="invalid_identity")
