"""A small client for the tests of the controller, and waiting on conditions."""

from __future__ import annotations

import json
import threading
import time
from http.client import HTTPException, HTTPSConnection
from ssl import create_default_context
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from terrace.controller.kinds import Kind

Manifest = dict[str, Any]
WAIT_S = 120.0
"""For a busy machine; what is waited for takes a second or two on a quiet one."""


class ApiError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body[:400]}")
        self.status = status


class Api:
    """The admin's raw JSON client; one connection per thread."""

    def __init__(self, server: str, pki: Path) -> None:
        parts = urlsplit(server)
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._tls = create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self._local = threading.local()

    def request(
        self, method: str, path: str, body: Manifest | None = None, content: str = ""
    ) -> Manifest:
        """One call; raises ApiError for anything but a success."""
        answer: Manifest = json.loads(self._answer(method, path, body, content))
        return answer

    def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """One object or None."""
        try:
            return self.request("GET", f"{kind.path(namespace)}/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def items(self, kind: Kind, namespace: str | None = None, selector: str = "") -> list[Manifest]:
        """All objects of a kind."""
        query = f"?labelSelector={selector}" if selector else ""
        found: list[Manifest] = self.request("GET", kind.path(namespace) + query)["items"]
        return found

    def history(self, kind: Kind, namespace: str, since: str) -> list[Manifest]:
        """Every state that objects of a kind had after that version, in their order.

        However long nobody looked: a watch tells each of them.
        """
        query = f"?watch=1&resourceVersion={since}&timeoutSeconds=1"
        told = self._answer("GET", kind.path(namespace) + query)
        events = [json.loads(line) for line in told.splitlines() if line]
        assert not [event for event in events if event["type"] == "ERROR"], events
        return [event["object"] for event in events]

    def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Create, as a user would."""
        return self.request("POST", kind.path(manifest["metadata"].get("namespace")), manifest)

    def patch(
        self, kind: Kind, namespace: str, name: str, body: Manifest, sub: str = ""
    ) -> Manifest:
        """Merge patch."""
        path = f"{kind.path(namespace)}/{name}{sub}"
        return self.request("PATCH", path, body, "application/merge-patch+json")

    def delete(self, kind: Kind, namespace: str, name: str, **options: Any) -> None:
        """Delete; gone already is fine."""
        try:
            self.request("DELETE", f"{kind.path(namespace)}/{name}", options or None)
        except ApiError as error:
            if error.status != 404:
                raise

    def evict(self, namespace: str, pod: str) -> tuple[int, str]:
        """As a drain does; status and body, 429 where a budget forbids it."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        status, data = self._send("POST", path, body, "")
        return status, data.decode(errors="replace")

    def close(self) -> None:
        """Close this thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def _answer(
        self, method: str, path: str, body: Manifest | None = None, content: str = ""
    ) -> bytes:
        deadline = time.monotonic() + WAIT_S
        status, data = self._send(method, path, body, content)
        while status == 429 and time.monotonic() < deadline:
            time.sleep(0.5)  # The server asks for it, while it changes a CRD's storage.
            status, data = self._send(method, path, body, content)
        if status >= 300:
            raise ApiError(status, data.decode(errors="replace"))
        return data

    def _send(
        self, method: str, path: str, body: Manifest | None, content: str
    ) -> tuple[int, bytes]:
        headers = {"Content-Type": content or "application/json"}
        payload = json.dumps(body) if body is not None else None
        for attempt in (1, 2):
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = HTTPSConnection(
                    self._host, self._port, context=self._tls, timeout=WAIT_S
                )
                self._local.connection = connection
            try:
                connection.request(method, path, payload, headers)
                response = connection.getresponse()
                return response.status, response.read()
            except (HTTPException, OSError):
                connection.close()
                self._local.connection = None
                if attempt == 2:
                    raise
        raise AssertionError


def eventually(
    probe: Callable[[], Any], what: str, *, timeout_s: float = WAIT_S, step_s: float = 0.05
) -> Any:
    """The probe's first truthy value; fails, saying what was waited for and what was last seen."""
    deadline = time.monotonic() + timeout_s
    while True:
        is_last = time.monotonic() > deadline  # One look more, should we have been stopped.
        value = probe()
        if value:
            return value
        if is_last:
            raise AssertionError(f"not within {timeout_s:g} s: {what}; last seen: {value!r}")
        time.sleep(step_s)


def each(values: list[Manifest], *path: str) -> Iterator[Any]:
    """One nested field of each object."""
    for value in values:
        found: Any = value
        for part in path:
            found = found.get(part, {})
        yield found
