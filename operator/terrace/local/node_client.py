"""The API server as the host node sees it: JSON in, JSON out.

Owns: the Kubernetes client of ``terrace.local`` (no other file of it imports the package), error
translation, list-and-watch with resume. Does not own: what is asked. Typed models are never used:
they drop fields they do not know. Next: ``hostnode.py``.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_kube_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

Json = dict[str, Any]

_TIMEOUT_S = 30.0
_WATCH_SECONDS = 290
_SILENCE_S = 330.0
"""A watch that says nothing for longer than it was asked to last is dead."""
_MAX_LINE_BYTES = 8 * 1024 * 1024
_PAGE = 500
_MERGE = "application/merge-patch+json"
_STRATEGIC = "application/strategic-merge-patch+json"


class ApiError(Exception):
    """The API server refused or was not reached; ``status`` is 0 in the latter case."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class GoneError(Exception):
    """The watch's resource version is too old: list again."""


@dataclass(frozen=True)
class Change:
    """One observed change; DELETED also for what vanished between two lists."""

    kind: Literal["CHANGED", "DELETED", "LISTED"]
    """LISTED carries an empty object: everything that existed at the list has been told."""
    object: Json


class NodeClient:
    """One connection pool under the node's identity."""

    def __init__(self, client: ApiClient, host: str) -> None:
        self._client = client
        self._host = host.rstrip("/")

    @classmethod
    async def connect(cls, kubeconfig: Path, user_agent: str) -> NodeClient:
        """Reads the kubeconfig; does not yet talk to the server."""
        configuration = Configuration()
        await load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
        # The server is on this machine: a proxy from the environment would only be in the way.
        configuration.client_session_kwargs = {"trust_env": False}
        client = ApiClient(configuration)
        client.user_agent = user_agent
        return cls(client, configuration.host)

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()

    async def get(self, path: str, **query: str) -> Json:
        """GET; raises ApiError."""
        return await self._json("GET", path, query)

    async def find(self, path: str) -> Json | None:
        """GET, or None where there is no such object."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise

    async def create(self, path: str, body: Json) -> Json:
        """POST."""
        return await self._json("POST", path, {}, body)

    async def replace(self, path: str, body: Json) -> Json:
        """PUT."""
        return await self._json("PUT", path, {}, body)

    async def patch(self, path: str, body: Json, *, is_strategic: bool = False) -> Json:
        """PATCH, a JSON merge patch unless ``is_strategic``."""
        kind = _STRATEGIC if is_strategic else _MERGE
        return await self._json("PATCH", path, {"fieldManager": "terrace-host-node"}, body, kind)

    async def delete(self, path: str, uid: str, grace_s: int | None = None) -> None:
        """DELETE that very object; one that is gone or another by now is no error."""
        body: Json = {"preconditions": {"uid": uid}}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        try:
            await self._json("DELETE", path, {}, body)
        except ApiError as error:
            if error.status not in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT}:
                raise

    async def list_and_watch(
        self, path: str, on_trouble: Callable[[str], None], **query: str
    ) -> AsyncIterator[Change]:
        """Every object, then every change, for ever; survives restarts of the server.

        A list after a gap is compared with what was told, so that no deletion is missed.
        """
        known: dict[str, Json] = {}
        failures = 0
        while True:
            try:
                items, version = await self._list(path, query)
                listed = {item["metadata"]["uid"]: item for item in items}
                for uid in known.keys() - listed.keys():
                    yield Change("DELETED", known.pop(uid))
                for uid, item in listed.items():
                    if _version(known.get(uid)) != _version(item):
                        known[uid] = item
                        yield Change("CHANGED", item)
                yield Change("LISTED", {})
                failures = 0
                async for change in self._watch_on(path, query, version, on_trouble):
                    known_uid = change.object["metadata"]["uid"]
                    if change.kind == "DELETED":
                        known.pop(known_uid, None)
                    else:
                        known[known_uid] = change.object
                    yield change
            except GoneError:
                continue
            except ApiError as error:
                failures += 1
                on_trouble(f"list {path}: {error}")
                await asyncio.sleep(_pause_s(failures))

    async def _watch_on(
        self, path: str, query: Mapping[str, str], version: str, on_trouble: Callable[[str], None]
    ) -> AsyncIterator[Change]:
        """Watches from ``version`` on, resuming where a connection ended, until 410."""
        failures = 0
        while True:
            try:
                async for event in self._stream(path, query, version):
                    failures = 0
                    found = event["object"]
                    if event["type"] == "ERROR":
                        raise _watch_error(found)
                    version = found["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        kind: Literal["CHANGED", "DELETED"] = (
                            "DELETED" if event["type"] == "DELETED" else "CHANGED"
                        )
                        yield Change(kind, found)
                # The server ends a watch after a few minutes: a pause, should it do so at once.
                await asyncio.sleep(_pause_s(1))
            except ApiError as error:
                if error.status == HTTPStatus.GONE:
                    raise GoneError from error
                failures += 1
                on_trouble(f"watch {path}: {error}")
                await asyncio.sleep(_pause_s(failures))

    async def _list(self, path: str, query: Mapping[str, str]) -> tuple[list[Json], str]:
        items: list[Json] = []
        token = ""
        while True:
            asked = {**query, "limit": str(_PAGE)} | ({"continue": token} if token else {})
            page = await self._json("GET", path, asked)
            items += page.get("items") or []
            token = page["metadata"].get("continue") or ""
            if not token:
                return items, page["metadata"]["resourceVersion"]

    async def _stream(
        self, path: str, query: Mapping[str, str], version: str
    ) -> AsyncIterator[Json]:
        asked = {
            **query,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        limits = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=_SILENCE_S)
        response = await self._request("GET", path, asked, None, _MERGE, limits)
        held = b""
        try:
            async for chunk in response.content.iter_any():
                held += chunk
                *lines, held = held.split(b"\n")
                for line in lines:
                    yield json.loads(line)
                if len(held) > _MAX_LINE_BYTES:
                    raise ApiError(0, "a watch event has no end")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(0, f"{type(error).__name__}: {error}") from error
        finally:
            response.close()

    async def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> Json:
        limits = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        response = await self._request(method, path, query, body, content_type, limits)
        try:
            found: Json = json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise ApiError(0, f"{type(error).__name__}: {error}") from error
        return found

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Json | None,
        content_type: str,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        url = self._host + path + (f"?{urlencode(query)}" if query else "")
        headers = {
            "Accept": "application/json",
            "Content-Type": content_type,
            "User-Agent": self._client.user_agent,
        }
        try:
            answer = await self._client.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=limits
            )
            response: aiohttp.ClientResponse = answer.response
            if response.status < HTTPStatus.BAD_REQUEST:
                return response
            text = await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"{type(error).__name__}: {error}") from error
        raise ApiError(response.status, _message(text))


def _message(text: str) -> str:
    try:
        return str(json.loads(text).get("message") or text)
    except (ValueError, AttributeError):
        return text[:500]


def _version(item: Json | None) -> str:
    return str(item["metadata"].get("resourceVersion")) if item else ""


def _watch_error(status: Json) -> ApiError:
    return ApiError(int(status.get("code") or 0), str(status.get("message") or "watch error"))


def _pause_s(failures: int) -> float:
    """0.2 s doubling to 5 s, with jitter: the server is on this machine and is back in seconds."""
    return float(min(5.0, 0.1 * 2.0 ** min(failures, 10)) * random.uniform(0.8, 1.2))  # noqa: S311  jitter
