"""ConfigMaps, Secrets, claims and tokens from the API server, for the pod runner.

Owns: the ``Sources`` of the host node. The node authorizer lets the node read exactly what its
own pods name. Next: ``pods/volumes.py`` and ``pods/run.py`` ask.
"""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from terrace.local.node_client import ApiError, NodeClient
from terrace.local.pods.ports import Data, NotReadyError, Token

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from terrace.local.pods.spec import Pod

Json = dict[str, Any]
Answer = TypeVar("Answer")

_FORBIDDEN = 403
_AUTHORIZER_TRIES = 10
_AUTHORIZER_PAUSE_S = 0.1
_CACHE_S = 1.0
"""Pods that start together name the same objects."""
_MAX_CACHED = 256


@dataclass
class ApiSources:
    """Sources over the API server."""

    client: NodeClient
    _cache: dict[str, tuple[float, Json | None]] = field(default_factory=dict)

    async def config_map(self, namespace: str, name: str) -> Data | None:
        """See Sources."""
        found = await self._find(f"/api/v1/namespaces/{namespace}/configmaps/{name}")
        if found is None:
            return None
        data = {key: value.encode() for key, value in (found.get("data") or {}).items()}
        return data | _decoded(found.get("binaryData") or {})

    async def secret(self, namespace: str, name: str) -> Data | None:
        """See Sources."""
        found = await self._find(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        return None if found is None else _decoded(found.get("data") or {})

    async def claim(self, namespace: str, name: str) -> Path:
        """See Sources."""
        claim = await self._find(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
        if claim is None:
            raise NotReadyError(f'persistentvolumeclaim "{name}" not found')
        volume_name = claim["spec"].get("volumeName")
        if (claim.get("status") or {}).get("phase") != "Bound" or not volume_name:
            raise NotReadyError(f'persistentvolumeclaim "{name}" is not bound')
        volume = await self._find(f"/api/v1/persistentvolumes/{volume_name}")
        spec = (volume or {}).get("spec") or {}
        place = spec.get("local") or spec.get("hostPath")
        if not place:
            raise NotReadyError(
                f'persistentvolume "{volume_name}" is neither local nor hostPath: the host node '
                "mounts no other kinds"
            )
        path = Path(place["path"])
        if not await asyncio.to_thread(path.is_dir):
            raise NotReadyError(f'persistentvolume "{volume_name}": {path} is not a folder')
        return path

    async def token(self, pod: Pod, audience: str, seconds: int) -> Token:
        """See Sources."""
        path = f"/api/v1/namespaces/{pod.namespace}/serviceaccounts/{pod.service_account}/token"
        spec: Json = {
            "expirationSeconds": seconds,
            "audiences": [audience] if audience else [],
            "boundObjectRef": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": pod.name,
                "uid": pod.uid,
            },
        }
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": spec,
        }
        found = await _patiently(lambda: self.client.create(path, request))
        status = found["status"]
        expires = datetime.fromisoformat(status["expirationTimestamp"])
        return Token(status["token"], expires.timestamp())

    async def _find(self, path: str) -> Json | None:
        cached = self._cache.get(path)
        if cached is not None and time.monotonic() - cached[0] < _CACHE_S:
            return cached[1]
        found = await _patiently(lambda: self.client.find(path))
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        if found is not None:
            self._cache[path] = (time.monotonic(), found)
        return found


async def _patiently(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """The node authorizer learns of a pod's binding a moment after we do: ask again."""
    for tries_left in reversed(range(_AUTHORIZER_TRIES)):
        try:
            return await ask()
        except ApiError as error:
            if error.status != _FORBIDDEN or not tries_left:
                raise NotReadyError(str(error)) from error
        await asyncio.sleep(_AUTHORIZER_PAUSE_S)
    raise AssertionError("unreachable: the last try returns or raises")


def _decoded(data: Json) -> dict[str, bytes]:
    return {key: base64.b64decode(value or "") for key, value in data.items()}
