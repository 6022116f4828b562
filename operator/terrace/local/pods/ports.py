"""What a pod runner needs from outside: where its data come from and who listens.

Owns: the protocols and the errors that cross them. Does not own: any implementation but
``StaticSources`` over values in memory (``terrace run``, tests); the host node has one over the
API server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from terrace.local.pods.spec import Pod

Data = Mapping[str, bytes]
"""Key -> content of a ConfigMap or Secret."""


class NotReadyError(Exception):
    """A source that is not there (yet): the runner says so and tries again."""


@dataclass(frozen=True)
class Token:
    """A service account token and its end, both as the API server states them."""

    value: str
    expires_at: float
    """Seconds since the epoch."""


class Sources(Protocol):
    """Resolves what a manifest names but does not hold."""

    async def config_map(self, namespace: str, name: str) -> Data | None:
        """The data of a ConfigMap, or None when it does not exist."""

    async def secret(self, namespace: str, name: str) -> Data | None:
        """The data of a Secret, or None when it does not exist."""

    async def claim(self, namespace: str, name: str) -> Path:
        """The folder of a bound PersistentVolumeClaim; raises NotReadyError."""

    async def token(self, pod: Pod, audience: str, seconds: int) -> Token:
        """A token of the pod's service account, bound to the pod; raises NotReadyError."""


class Listener(Protocol):
    """Is told what happens; must not block."""

    def changed(self) -> None:
        """The pod's status is not what it was."""

    def event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Something a person would want to see under ``kubectl describe pod``."""


@dataclass(frozen=True)
class StaticSources:
    """Sources that are all known beforehand, by name."""

    config_maps: Mapping[str, Data] = field(default_factory=dict)
    secrets: Mapping[str, Data] = field(default_factory=dict)
    claims: Mapping[str, Path] = field(default_factory=dict)
    tokens: Mapping[str, Token] = field(default_factory=dict)
    """Service account -> token."""

    async def config_map(self, namespace: str, name: str) -> Data | None:  # noqa: ARG002  see Sources
        """See Sources."""
        return self.config_maps.get(name)

    async def secret(self, namespace: str, name: str) -> Data | None:  # noqa: ARG002  see Sources
        """See Sources."""
        return self.secrets.get(name)

    async def claim(self, namespace: str, name: str) -> Path:  # noqa: ARG002  see Sources
        """See Sources."""
        if name not in self.claims:
            raise NotReadyError(f'persistentvolumeclaim "{name}" not found')
        return self.claims[name]

    async def token(self, pod: Pod, audience: str, seconds: int) -> Token:  # noqa: ARG002  see Sources
        """See Sources."""
        if pod.service_account not in self.tokens:
            raise NotReadyError(f'no token for service account "{pod.service_account}"')
        return self.tokens[pod.service_account]
