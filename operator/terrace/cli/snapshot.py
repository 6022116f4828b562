"""What a user may see of a cluster, read once, and what they may not.

Owns: which lists are asked for, and going on without those that are forbidden. Does not own: HTTP
(``cluster.py``), judging (``explain_walk.py``, ``planner``). The objects go into the operator's own
cache, so that its pure functions answer the same here as there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.names import Key
from terrace.cli.errors import InputError, NoAnswerError
from terrace.controller.cache import Cache
from terrace.controller.kinds import NODE, POD, STATEFULSET, Kind, Manifest
from terrace.controller.port import (
    ClusterError,
    ForbiddenError,
    GoneError,
    NotFoundError,
    UnavailableError,
)

if TYPE_CHECKING:
    from terrace.cli.reader import ClusterReader
    from terrace.planner.inputs import Usage

_NO_SUCH_KIND = "could not find the requested resource"
"""What an API server says about a kind that no CRD brings."""
NO_MODEL = Key("", "")
MANAGED = f"{names.MANAGED_BY}={names.MANAGED_BY_VALUE}"


@dataclass(slots=True)
class Snapshot:
    """Objects of one moment, and what is not among them."""

    reader: ClusterReader
    home: str = ""
    """Namespace to fall back to, where lists of all of them are forbidden."""
    cache: Cache = field(default_factory=Cache)
    gaps: list[str] = field(default_factory=list)
    """What this user may not read, a clause each."""

    def read(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = ""
    ) -> list[Manifest]:
        """A list; where it is forbidden across all namespaces, of ``home`` alone."""
        try:
            return self._into_cache(kind, self._list(kind, namespace, labels, fields))
        except ForbiddenError as error:
            where = f"in namespace {namespace}" if namespace else "in other namespaces"
            where = where if kind.namespaced else "of the cluster"
            self.gaps.append(f"{kind.plural} {where} ({_reason(error)})")
        except NotFoundError:
            self.gaps.append(f"{kind.plural}: the cluster does not know them")
            return []
        if namespace is None and kind.namespaced and self.home:
            return self.read(kind, self.home, labels=labels, fields=fields)
        return []

    def one(self, kind: Kind, key: Key) -> Manifest | None:
        """One object; None when it is not there or may not be read, which is then a gap."""
        try:
            found = self.reader.get(kind, key)
        except NotFoundError:
            return None
        except ForbiddenError as error:
            self.gaps.append(f"{kind.kind} {key} ({_reason(error)})")
            return None
        except ClusterError as error:
            raise NoAnswerError(str(error)) from error
        self._into_cache(kind, [found])
        return found

    def required(self, kind: Kind, key: Key, hint: str) -> Manifest:
        """One object without which there is nothing to say."""
        try:
            found = self.reader.get(kind, key)
        except NotFoundError as error:
            if _NO_SUCH_KIND in str(error):
                raise InputError(
                    f"{self.reader.server} does not know {kind.kind}: Terrace is not installed "
                    "there (kubectl apply -f crds/), or it is the wrong cluster (--kube-context)"
                ) from error
            raise InputError(f"{kind.kind} {key} is not in the cluster: {hint}") from error
        except ForbiddenError as error:
            raise NoAnswerError(f"{kind.kind} {key} may not be read: {error}") from error
        except ClusterError as error:
            raise NoAnswerError(str(error)) from error
        self._into_cache(kind, [found])
        return found

    def usage_for(self, pool: Manifest | None) -> Usage:
        """What all replicas have taken, those that wait by the pool's flavors."""
        flavors = ((pool or {}).get("spec") or {}).get("flavors") or ()
        selectors = {str(each.get("name")): each.get("nodeSelector") or {} for each in flavors}
        return self.cache.inventory.used_by_others(NO_MODEL, selectors or None)

    def read_usage(self) -> None:
        """Nodes, and the pods and sets of all models."""
        self.read(NODE, None)
        for kind in (POD, STATEFULSET):
            self.read(kind, None, labels=MANAGED)

    def quietly(self, kind: Kind, labels: str, gap: str) -> list[Manifest]:
        """A list of all namespaces; where it is forbidden, ``gap`` says what that means."""
        try:
            return self._list(kind, None, labels, "")
        except (ForbiddenError, NotFoundError):
            self.gaps.append(gap)
            return []

    def _list(self, kind: Kind, namespace: str | None, labels: str, fields: str) -> list[Manifest]:
        try:
            return self.reader.list_all(kind, namespace, labels=labels, fields=fields)
        except GoneError:
            return self.reader.list_all(kind, namespace, labels=labels, fields=fields)
        except UnavailableError as error:
            raise NoAnswerError(str(error)) from error

    def _into_cache(self, kind: Kind, found: list[Manifest]) -> list[Manifest]:
        for manifest in found:
            self.cache.put(kind, manifest)
        return found


def parse_key(text: str, namespace: str, option: str) -> Key:
    """``NAME`` or ``NAMESPACE/NAME``."""
    first, slash, second = text.partition("/")
    key = Key(first, second) if slash else Key(namespace, first)
    if not key.name or not key.namespace or "/" in key.name:
        raise InputError(f"{option} {text}: must be NAME or NAMESPACE/NAME")
    return key


def _reason(error: ClusterError) -> str:
    return str(error).partition(": ")[2][:200] or "forbidden"
