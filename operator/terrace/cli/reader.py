"""What the command line asks a cluster for: objects, read only.

Owns: the protocol. Does not own: HTTP (``cluster.py``), the fake of the tests, or what the objects
mean (``snapshot.py``). Errors are those of ``terrace.controller.port``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from terrace.api.names import Key
    from terrace.controller.kinds import Kind, Manifest


class ClusterReader(Protocol):
    """A cluster as one user may read it. Every method raises ``ClusterError`` only."""

    @property
    def server(self) -> str:
        """Where the API server is, for messages."""
        ...

    @property
    def namespace(self) -> str:
        """The namespace that is meant where none is named."""
        ...

    def get(self, kind: Kind, key: Key) -> Manifest:
        """One object; ``NotFoundError`` when it is not there."""
        ...

    def list_all(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = ""
    ) -> list[Manifest]:
        """Objects of one namespace or (None) of all, by label and field selectors."""
        ...
