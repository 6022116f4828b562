"""Talking to the API server of a benchmark, and what it was asked, out of its audit log.

Owns: the bare client (aiohttp, as the operator uses it), the audit policy, reading the log with
bodies and the server's own times. Does not own: what is sent (``operator_replay.py``).
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

Manifest = dict[str, Any]
JSON, MERGE, APPLY = (
    "application/json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
)
MAX_LINE = 4 << 20


class RequestError(Exception):
    """An answer that is no success."""


class Client:
    """One aiohttp session; bodies are bytes both ways."""

    def __init__(self, server: str, pki: Path, token: str = "") -> None:
        self._server = server
        tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        headers = {"Accept": JSON, "User-Agent": "terrace-bench"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        else:
            tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=64),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=120),
            read_bufsize=MAX_LINE,
        )

    async def close(self) -> None:
        await self._session.close()

    async def send(
        self, method: str, path: str, body: Manifest | None = None, content: str = JSON
    ) -> bytes:
        """One call; any success."""
        data = orjson.dumps(body) if body is not None else None
        async with self._session.request(
            method, self._server + path, data=data, headers={"Content-Type": content}
        ) as response:
            answer = await response.read()
            if response.status >= 300:
                text = answer[:400].decode(errors="replace")
                raise RequestError(f"{method} {path}: {response.status} {text}")
            return answer

    async def get(self, path: str) -> Manifest:
        found: Manifest = orjson.loads(await self.send("GET", path))
        return found

    async def count(self, path: str) -> int:
        """How many objects a collection has, without reading them."""
        page = await self.get(f"{path}?limit=1")
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount") or 0)

    async def watch(self, path: str) -> AsyncIterator[Manifest]:
        """Events from now on, for ever."""
        version = (await self.get(f"{path}?limit=1"))["metadata"]["resourceVersion"]
        url = f"{self._server}{path}?watch=1&resourceVersion={version}"
        forever = aiohttp.ClientTimeout(total=None)
        async with self._session.get(url, timeout=forever) as response:
            async for line in response.content:
                yield orjson.loads(line)


# The audit log ----------------------------------------------------------------------------------


def audit_policy(user: str) -> Manifest:
    """All writes; those of ``user`` with their bodies."""
    written = ["create", "update", "patch", "delete", "deletecollection"]
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [
            {"level": "Request", "users": [user], "verbs": written},
            {"level": "Metadata", "verbs": written},
        ],
    }


@dataclass(frozen=True, slots=True)
class Asked:
    """One answered request to write; times are the server's, in seconds."""

    verb: str
    user: str
    uri: str
    resource: str
    namespace: str
    name: str
    received: float
    answered: float
    code: int
    body: Manifest | None


@dataclass
class AuditLog:
    """A growing file, read once."""

    path: Path
    _offset: int = field(default=0)

    def news(self) -> Iterator[Asked]:
        """What was added since the last call; a half-written line waits."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield _asked(orjson.loads(line))


def _asked(record: Manifest) -> Asked:
    target = record.get("objectRef") or {}
    parts = [target[key] for key in ("resource", "subresource") if target.get(key)]
    return Asked(
        verb=record["verb"],
        user=(record.get("user") or {}).get("username", ""),
        uri=record["requestURI"],
        resource="/".join(parts),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        received=datetime.fromisoformat(record["requestReceivedTimestamp"]).timestamp(),
        answered=datetime.fromisoformat(record["stageTimestamp"]).timestamp(),
        code=int((record.get("responseStatus") or {}).get("code", 0)),
        body=record.get("requestObject"),
    )
