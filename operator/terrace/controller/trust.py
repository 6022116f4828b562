"""The key pair behind the signed header between gateway and runtime.

Owns: the Secret ``terrace-trust`` in the operator's namespace: made when absent, never changed.
Does not own: signing (gateway) or checking (runtime). Next: the public half goes into every
RuntimeConfig.
"""

from __future__ import annotations

import base64
import binascii

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from terrace.api import names
from terrace.api.names import Key
from terrace.controller.kinds import SECRET, Manifest
from terrace.controller.port import Cluster, ConflictError, NotFoundError

SECRET_NAME = "terrace-trust"  # noqa: S105 -- the name of a Secret, not one
SECRET_FIELD = "ed25519"  # noqa: S105 -- as above


class BadTrustKeyError(Exception):
    """The Secret exists but holds no Ed25519 key; the message says what to do."""


async def ensure_trust_key(cluster: Cluster, namespace: str) -> str:
    """Public key, base64url without padding; creates the Secret when it is absent."""
    key = Key(namespace, SECRET_NAME)
    try:
        secret = await cluster.get(SECRET, key)
    except NotFoundError:
        try:
            secret = await cluster.create(SECRET, _new_secret(key))
        except ConflictError:
            secret = await cluster.get(SECRET, key)
    return public_key(secret)


def public_key(secret: Manifest) -> str:
    """The public half of the stored private key."""
    try:
        text = base64.b64decode((secret.get("data") or {})[SECRET_FIELD], validate=True).decode()
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        private = Ed25519PrivateKey.from_private_bytes(raw)
    except (KeyError, ValueError, binascii.Error) as error:
        raise BadTrustKeyError(
            f"Secret {SECRET_NAME} holds no Ed25519 key under {SECRET_FIELD!r}: delete it, "
            "and the operator makes a new one"
        ) from error
    return _base64url(private.public_key().public_bytes_raw())


def _new_secret(key: Key) -> Manifest:
    private = _base64url(Ed25519PrivateKey.generate().private_bytes_raw())
    return {
        "apiVersion": SECRET.api_version,
        "kind": SECRET.kind,
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "labels": {
                names.MANAGED_BY: names.MANAGED_BY_VALUE,
                names.PART_OF: "terrace",
                names.COMPONENT: "trust",
            },
        },
        "type": "Opaque",
        "data": {SECRET_FIELD: base64.b64encode(private.encode()).decode()},
    }


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
