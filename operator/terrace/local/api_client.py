"""A few requests to the cluster's own API server, without a client library.

Owns: TLS with the admin's certificate, JSON in and out. Does not own: anything that watches or
lists at length (the node agent and the operator use a real client).
"""

from __future__ import annotations

import http.client
import json
import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT_S = 10.0


class ApiClient:
    """Talks to one API server as the admin of its cluster."""

    def __init__(self, address: str, port: int, pki: Path) -> None:
        self._address = address
        self._port = port
        self._tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    def get(self, path: str) -> tuple[int, Any]:
        """Status and body: parsed JSON, or text. Status 0: the server did not answer."""
        return self._request("GET", path, None, "")

    def is_ready(self) -> bool:
        """Whether all of the server's own checks pass."""
        return self.get("/readyz")[0] == http.HTTPStatus.OK

    def apply(self, path: str, manifest: dict[str, Any]) -> tuple[int, Any]:
        """Server-side apply of one object at its own path."""
        query = "?fieldManager=terrace-local&force=true"
        body = json.dumps(manifest).encode()
        return self._request("PATCH", path + query, body, "application/apply-patch+yaml")

    def _request(
        self, method: str, path: str, body: bytes | None, content_type: str
    ) -> tuple[int, Any]:
        connection = http.client.HTTPSConnection(
            self._address, self._port, context=self._tls, timeout=_TIMEOUT_S
        )
        headers = {"Content-Type": content_type} if body is not None else {}
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)
        finally:
            connection.close()
        if "json" in (response.headers.get("Content-Type") or ""):
            return response.status, json.loads(data)
        return response.status, data.decode(errors="replace")
