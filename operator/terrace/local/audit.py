"""What the API server was asked, by whom: the audit log as values.

Owns: the policy and reading the log. Does not own: switching it on (ClusterOptions.audit). Tests
count writes with it: "no write in an idle minute" is a fact of this log.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WRITE_VERBS = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True)
class AuditEvent:
    """One answered request."""

    verb: str
    user: str
    user_agent: str
    resource: str
    """Plural, with the subresource: ``pods/status``; a path for what is no resource."""
    namespace: str
    name: str
    code: int
    received: str
    """RFC 3339 with microseconds; sorts as text."""

    @property
    def is_write(self) -> bool:
        """Whether it could change something."""
        return self.verb in WRITE_VERBS


def policy() -> bytes:
    """Everything once, when it is answered, without bodies. JSON is YAML."""
    document = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [{"level": "Metadata"}],
    }
    return json.dumps(document).encode()


def read_events(log: Path) -> Iterator[AuditEvent]:
    """The events of the current audit file, oldest first; a half-written last line is left out."""
    if not log.exists():
        return
    with log.open() as file:
        for line in file:
            if line.endswith("\n"):
                yield _event(json.loads(line))


def _event(record: dict[str, object]) -> AuditEvent:
    target = _mapping(record.get("objectRef"))
    parts = [str(target[key]) for key in ("resource", "subresource") if target.get(key)]
    return AuditEvent(
        verb=str(record.get("verb", "")),
        user=str(_mapping(record.get("user")).get("username", "")),
        user_agent=str(record.get("userAgent", "")),
        resource="/".join(parts) or str(record.get("requestURI", "")),
        namespace=str(target.get("namespace", "")),
        name=str(target.get("name", "")),
        code=int(str(_mapping(record.get("responseStatus")).get("code", 0))),
        received=str(record.get("requestReceivedTimestamp", "")),
    )


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
