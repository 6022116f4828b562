"""A remote model as files to get: what every kind of remote source is resolved into. Pure.

Owns: RemoteFile, Remote and the bearer token. Does not own: how a source is asked (``hub``, ``s3``,
``oci``) or the bytes (``download``, ``remote_header``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from terrace_runtime.models.sources import origin
from terrace_runtime.models.web import Access

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class RemoteFile:
    """One file, or one part of a split one."""

    url: str
    size: int = 0
    """Bytes; 0: unknown until it is asked for."""
    sha256: str | None = None
    """What the source itself says of it, in hex."""


@dataclass(frozen=True)
class Remote:
    """A model's files in order of their parts, and what it takes to be given them."""

    files: tuple[RemoteFile, ...]
    access: Access = field(default_factory=Access)

    @property
    def digest(self) -> str | None:
        """The digest that the whole will have, if the source tells enough."""
        known = [file.sha256 for file in self.files if file.sha256 is not None]
        return digest_of(known) if len(known) == len(self.files) else None


class Bearer(Access):
    """Sends a token to one origin and to nobody else."""

    def __init__(self, base_url: str, token: str) -> None:
        self._origin = origin(base_url)
        self._token = token

    def headers(self, url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The token, where ``url`` lies at our origin."""
        del headers
        if not self._token or origin(url) != self._origin:
            return {}
        return {"Authorization": f"Bearer {self._token}"}


def digest_of(part_digests: Sequence[str]) -> str:
    """A model's digest: its file's sha256; of parts, the sha256 of their digests' lines."""
    if len(part_digests) == 1:
        return part_digests[0]
    return hashlib.sha256("\n".join(part_digests).encode()).hexdigest()
