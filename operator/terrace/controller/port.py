"""The controller's port to a Kubernetes cluster: what it may ask for and how that can fail.

Owns: the protocol and its errors. Does not own: HTTP (``cluster.py``) or the fake that the
simulation runs on (``tests/simulation/controller``). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace.api.names import Key
    from terrace.controller.kinds import Kind, Manifest


class ClusterError(Exception):
    """A call failed; the subclasses say what the caller can do about it."""


class ConflictError(ClusterError):
    """409: somebody else wrote first, the object exists already, or a precondition failed."""


class NotFoundError(ClusterError):
    """404: the object, or its namespace, is not there."""


class ForbiddenError(ClusterError):
    """401 or 403: a role is missing. Retried slowly, because roles get fixed."""


class InvalidError(ClusterError):
    """400 or 422: the API server refuses the object as it is."""


class GoneError(ClusterError):
    """410: the list token or resource version is too old; start over."""


class UnavailableError(ClusterError):
    """The server was not reached, timed out or failed; the write may have happened."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A complete list at one resource version."""

    items: list[Manifest]
    resource_version: str


class Cluster(Protocol):
    """Everything the controller does to a cluster. Every method raises ``ClusterError`` only."""

    async def apply(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Server-side apply, forced, as ``names.FIELD_MANAGER``. A uid is a precondition."""
        ...

    async def preview(self, kind: Kind, manifest: Manifest) -> Manifest:
        """What ``apply`` would store; nothing is written."""
        ...

    async def apply_status(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Server-side apply to ``/status``, forced, as ``names.STATUS_MANAGER``."""
        ...

    async def get(self, kind: Kind, key: Key) -> Manifest:
        """Read one object from the server."""
        ...

    async def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Create; ``ConflictError`` if it exists."""
        ...

    async def replace(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Replace; ``ConflictError`` unless metadata.resourceVersion is the stored one."""
        ...

    async def delete(self, kind: Kind, key: Key, uid: str, *, orphan: bool = False) -> None:
        """Delete exactly the object with that uid; its dependents follow in the background.

        ``orphan``: they stay, without an owner.
        """
        ...

    async def list_all(
        self, kind: Kind, namespace: str | None, selector: str, take: Callable[[Manifest], None]
    ) -> str:
        """List page by page, starting over when a page has expired; returns the list's version.

        Each object goes to ``take`` as it comes, so that never all of them are in memory.
        """
        ...

    async def read_log(self, pod: Key, container: str, max_bytes: int) -> str:
        """The last lines of a container's log, at most ``max_bytes``."""
        ...
