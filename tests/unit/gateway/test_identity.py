"""The token that a replica trusts: signed here, checked as the runtime checks it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from support.gateway import PRIVATE_KEY, verify
from terrace.api.names import Key
from terrace.controller.trust import SECRET_FIELD, SECRET_NAME, _new_secret, public_key
from terrace.gateway.identity import (
    REUSE_S,
    TOKEN_LIFE_S,
    Signer,
    TrustKeyError,
    read_private_key,
)
from terrace_runtime.api.errors import ApiError
from terrace_runtime.api.identity import IdentityVerifier
from terrace_runtime.contract import Identity

if TYPE_CHECKING:
    from pathlib import Path

DEMO = Key("default", "demo")


class Clock:
    now = 1_800_000_000.5

    def __call__(self) -> float:
        return self.now


def test_a_token_says_who_asks_how_urgently_and_for_what() -> None:
    identity = verify(Signer(PRIVATE_KEY, Clock()).token("acme", "batch", DEMO))
    assert identity == Identity(
        tenant="acme", priority="batch", model="default/demo", exp=1_800_000_000 + TOKEN_LIFE_S
    )


def test_a_token_of_another_key_is_refused() -> None:
    token = Signer(bytes(32), Clock()).token("", "interactive", DEMO)
    with pytest.raises(ApiError):
        verify(token)


def test_a_changed_token_is_refused() -> None:
    head, payload, signature = Signer(PRIVATE_KEY, Clock()).token("", "batch", DEMO).split(".")
    forged = base64.urlsafe_b64encode(
        base64.urlsafe_b64decode(payload + "==").replace(b'"batch"', b'"interactive"')
    )
    with pytest.raises(ApiError):
        verify(f"{head}.{forged.decode().rstrip('=')}.{signature}")


def test_a_token_is_reused_for_a_few_seconds_only() -> None:
    clock = Clock()
    signer = Signer(PRIVATE_KEY, clock)
    first = signer.token("", "interactive", DEMO)
    clock.now += REUSE_S - 0.1
    assert signer.token("", "interactive", DEMO) == first
    clock.now += 0.2
    assert verify(signer.token("", "interactive", DEMO)).exp > verify(first).exp


def test_a_clock_that_jumps_back_makes_a_new_token() -> None:
    clock = Clock()
    signer = Signer(PRIVATE_KEY, clock)
    first = signer.token("", "interactive", DEMO)
    clock.now -= 3600
    assert verify(signer.token("", "interactive", DEMO)).exp < verify(first).exp


def test_tenants_priorities_and_models_have_tokens_of_their_own() -> None:
    signer = Signer(PRIVATE_KEY, Clock())
    tokens = {
        signer.token("", "interactive", DEMO),
        signer.token("", "batch", DEMO),
        signer.token("a", "interactive", DEMO),
        signer.token("", "interactive", Key("default", "other")),
    }
    assert len(tokens) == 4


def test_kept_tokens_are_bounded() -> None:
    signer = Signer(PRIVATE_KEY, Clock())
    signer._tokens = {(str(n), "batch", DEMO): (0.0, "") for n in range(4096)}
    signer.token("", "batch", DEMO)
    assert len(signer._tokens) == 1


def test_the_key_file_is_read_as_the_operator_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "ed25519"
    path.write_bytes(base64.urlsafe_b64encode(PRIVATE_KEY).rstrip(b"="))
    assert read_private_key(path) == PRIVATE_KEY


@pytest.mark.parametrize("text", ["", "AAAA", "*" * 43, "A" * 44, "ä" * 43])
def test_another_key_file_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ed25519"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TrustKeyError, match="ed25519"):
        read_private_key(path)


def test_a_replica_trusts_the_key_that_the_operator_made(tmp_path: Path) -> None:
    secret = _new_secret(Key("terrace-system", SECRET_NAME))
    path = tmp_path / SECRET_FIELD
    path.write_bytes(base64.b64decode(secret["data"][SECRET_FIELD]))  # as a kubelet mounts it
    signer = Signer(read_private_key(path), Clock())
    verifier = IdentityVerifier(public_key(secret), Clock())
    identity = verifier.verify(signer.token("", "interactive", DEMO))
    assert identity is not None
    assert identity.model == "default/demo"


def test_a_missing_key_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrustKeyError, match="cannot be read"):
        read_private_key(tmp_path / "none")
