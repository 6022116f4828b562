"""The cluster over HTTP: the one file of the controller that imports the Kubernetes client.

Owns: credentials, paths, field managers, timeouts, the bound on calls in flight, the translation
of answers into ``port`` errors, and the count of calls. Does not own: what is written or when.
Bodies are plain dicts both ways: typed models drop fields they do not know.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_kube_config
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import InClusterConfigLoader

from terrace import __version__
from terrace.api import names
from terrace.controller.kinds import Kind, Manifest, key_of
from terrace.controller.port import (
    ClusterError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from terrace_runtime.contract import pod_path

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace.api.names import Key
    from terrace.controller.metrics import Metrics

USER_AGENT = f"terrace-operator/{__version__}"
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
PAGE_SIZE = 250
"""Reading a page holds the event loop for about 20 ms."""
MAX_LIST_RESTARTS = 3
MAX_IN_FLIGHT = 20
CALL_TIMEOUT_S = 30.0
HTTP_ERROR = 300
APPLY = "application/apply-patch+yaml"

_ERRORS: dict[int, type[ClusterError]] = {
    400: InvalidError,
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: InvalidError,
}


class ConfigurationError(Exception):
    """There are no usable credentials; the message says where they were looked for."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the API server is and how to prove who we are; for kopf's own client."""

    server: str
    ca_path: str | None
    certificate_path: str | None
    key_path: str | None
    token: str | None
    proxy: str | None = None
    """URL of the proxy in between."""


async def load_configuration() -> Configuration:
    """Credentials of the pod's service account, else of KUBECONFIG (~/.kube/config)."""
    configuration = Configuration()
    token, ca = pod_path(f"{SERVICE_ACCOUNT}/token"), pod_path(f"{SERVICE_ACCOUNT}/ca.crt")
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST") and token.is_file():
            loader = InClusterConfigLoader(token_filename=str(token), cert_filename=str(ca))
            loader.load_and_set(configuration)
        else:
            await load_kube_config(client_configuration=configuration)
    except (ConfigException, OSError) as error:
        raise ConfigurationError(
            f"no service account under {SERVICE_ACCOUNT} and no usable kubeconfig: {error}"
        ) from error
    configuration.connection_pool_maxsize = MAX_IN_FLIGHT
    # trust_env would have aiohttp read ~/.netrc and the environment anew, on another thread, for
    # every request: the environment does not change, and a netrc has no place beside our token.
    configuration.client_session_kwargs = {"trust_env": False}
    configuration.proxy = configuration.proxy or proxy_of(configuration.host)
    return configuration


def proxy_of(server: str) -> str | None:
    """The proxy to a server, by HTTP_PROXY, HTTPS_PROXY and NO_PROXY; None: there is none."""
    parts = urlsplit(server)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


async def connection_of(configuration: Configuration) -> Connection:
    """The same credentials as a value, with a token that is fresh now."""
    auth = (await configuration.auth_settings()).get("BearerToken") or {}
    scheme, _, token = str(auth.get("value") or "").partition(" ")
    return Connection(
        configuration.host,
        configuration.ssl_ca_cert,
        configuration.cert_file,
        configuration.key_file,
        token or scheme or None,
        configuration.proxy,
    )


class HttpCluster:
    """``port.Cluster`` on a real API server."""

    def __init__(self, configuration: Configuration, metrics: Metrics) -> None:
        self._client = ApiClient(configuration)
        self._configuration = configuration
        self._metrics = metrics
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def apply(self, kind: Kind, manifest: Manifest) -> Manifest:
        """See ``port.Cluster``."""
        return await self._apply(kind, manifest, "", names.FIELD_MANAGER)

    async def preview(self, kind: Kind, manifest: Manifest) -> Manifest:
        """See ``port.Cluster``."""
        return await self._apply(kind, manifest, "", names.FIELD_MANAGER, dryRun="All")

    async def apply_status(self, kind: Kind, manifest: Manifest) -> Manifest:
        """See ``port.Cluster``."""
        return await self._apply(kind, manifest, "/status", names.STATUS_MANAGER)

    async def get(self, kind: Kind, key: Key) -> Manifest:
        """See ``port.Cluster``."""
        return await self._json("get", "GET", kind, _path(kind, key))

    async def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        """See ``port.Cluster``."""
        path = kind.path(key_of(manifest).namespace)
        query = {"fieldManager": names.FIELD_MANAGER}
        return await self._json("create", "POST", kind, path, query, manifest)

    async def replace(self, kind: Kind, manifest: Manifest) -> Manifest:
        """See ``port.Cluster``."""
        path = _path(kind, key_of(manifest))
        query = {"fieldManager": names.FIELD_MANAGER}
        return await self._json("update", "PUT", kind, path, query, manifest)

    async def delete(self, kind: Kind, key: Key, uid: str, *, orphan: bool = False) -> None:
        """See ``port.Cluster``."""
        policy = "Orphan" if orphan else "Background"
        options = {"preconditions": {"uid": uid}, "propagationPolicy": policy}
        await self._call("delete", "DELETE", kind, _path(kind, key), None, options)

    async def list_all(
        self, kind: Kind, namespace: str | None, selector: str, take: Callable[[Manifest], None]
    ) -> str:
        """See ``port.Cluster``."""
        for _ in range(MAX_LIST_RESTARTS):
            try:
                return await self._list_once(kind, namespace, selector, take)
            except GoneError:
                continue  # A page token outlived its snapshot; the next one is fresh.
        raise UnavailableError(f"list of {kind.plural} expired {MAX_LIST_RESTARTS} times")

    async def is_discovered(self, kind: Kind) -> bool:
        """Whether the server's lists of what it serves name the kind.

        They are made behind its back: a new kind can be listed and written before they name it.
        """
        groups = (await self._json("get", "GET", kind, "/apis")).get("groups") or ()
        versions = [
            version["groupVersion"] for group in groups for version in group.get("versions") or ()
        ]
        if kind.api_version not in versions:
            return False
        try:
            found = await self._json("get", "GET", kind, f"/apis/{kind.api_version}")
        except NotFoundError:
            return False
        return kind.plural in [each["name"] for each in found.get("resources") or ()]

    async def read_log(self, pod: Key, container: str, max_bytes: int) -> str:
        """See ``port.Cluster``."""
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/log"
        query = {"container": container, "tailLines": "1", "limitBytes": str(max_bytes)}
        kind = Kind("v1", "Pod", "pods/log")
        body = await self._call("get", "GET", kind, path, query)
        return body[:max_bytes].decode(errors="replace")

    async def _list_once(
        self, kind: Kind, namespace: str | None, selector: str, take: Callable[[Manifest], None]
    ) -> str:
        query = {"limit": str(PAGE_SIZE)}
        if selector:
            query["labelSelector"] = selector
        while True:
            page = await self._json("list", "GET", kind, kind.path(namespace), query)
            for item in page.get("items") or ():
                take(item)
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return str(metadata.get("resourceVersion", ""))
            query["continue"] = metadata["continue"]

    async def _apply(
        self, kind: Kind, manifest: Manifest, sub: str, manager: str, **more: str
    ) -> Manifest:
        path = _path(kind, key_of(manifest)) + sub
        query = {"fieldManager": manager, "force": "true", **more}
        return await self._json("apply", "PATCH", kind, path, query, manifest)

    async def _json(
        self,
        verb: str,
        method: str,
        kind: Kind,
        path: str,
        query: dict[str, str] | None = None,
        body: Manifest | None = None,
    ) -> Manifest:
        data = await self._call(verb, method, kind, path, query, body)
        try:
            parsed: Manifest = orjson.loads(data)
        except ValueError as error:
            raise UnavailableError(f"{verb} {path}: the answer is not JSON") from error
        return parsed

    async def _call(
        self,
        verb: str,
        method: str,
        kind: Kind,
        path: str,
        query: dict[str, str] | None = None,
        body: Manifest | None = None,
    ) -> bytes:
        async with self._in_flight:
            started_at, code = time.monotonic(), "none"
            try:
                response = await self._send(method, path, query, body)
                code = str(response.status)
                data: bytes = await response.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise UnavailableError(f"{verb} {path}: {error or type(error).__name__}") from error
            finally:
                self._metrics.observe_call(verb, kind.plural, code, time.monotonic() - started_at)
        if response.status >= HTTP_ERROR:
            raise _error(verb, path, response.status, data)
        return data

    async def _send(
        self, method: str, path: str, query: dict[str, str] | None, body: Manifest | None
    ) -> Any:
        headers = {
            "Accept": "application/json",
            "Content-Type": APPLY if method == "PATCH" else "application/json",
            "User-Agent": USER_AGENT,
        }
        auth = (await self._configuration.auth_settings()).get("BearerToken")
        if auth:
            headers["Authorization"] = str(auth["value"])
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        return await self._client.call_api(
            method, url, headers, body=body, _request_timeout=CALL_TIMEOUT_S
        )


def _path(kind: Kind, key: Key) -> str:
    return f"{kind.path(key.namespace)}/{key.name}"


def _error(verb: str, path: str, status: int, data: bytes) -> ClusterError:
    try:
        message = str(orjson.loads(data).get("message", ""))
    except (ValueError, AttributeError):
        message = data[:200].decode(errors="replace")
    error = _ERRORS.get(status, UnavailableError)
    return error(f"{verb} {path}: {status} {message}")
