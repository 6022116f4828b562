"""Keeps the registry like the cluster: lists and watches runtime Pods and InferenceModels.

Owns: the Kubernetes connection (the gateway's only import of the client), resuming, re-listing
after a 410, back-off. Does not own: what objects mean (``registry.py``). Read-only. A list that
follows a gap replaces its scope as a whole, so what vanished meanwhile vanishes here too; until the
first list of every scope is in, ``not_ready`` says so and nothing is served from half a view. While
the API server is away the last view stays in use.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
import orjson
import structlog
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.config import incluster_config, kube_config
from yarl import URL

from terrace.api import names
from terrace_runtime.contract import pod_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from terrace.gateway.registry import Raw, Registry

log = structlog.get_logger("terrace.gateway.watcher")

PAGE_SIZE = 500
MAX_EVENT_BYTES = 8 * 1024 * 1024
"""Larger than any object that etcd takes, as JSON."""
WATCH_S = 300
"""The server ends a watch after this; ours resumes. Bookmarks come every minute meanwhile."""
SILENCE_S = 100.0
"""A watch without so much as a bookmark for this long is dead (half-open connection)."""
LIST_TIMEOUT_S = 60.0
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.1, 10.0
GONE = 410
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class GoneError(Exception):
    """The API server no longer has the history to resume from (410): list again."""


class RefusedError(Exception):
    """The API server answered with another error; the message says which and what to do."""


@dataclass(slots=True)
class Scope:
    """One resource in one namespace (None: all): what is listed and watched as a unit."""

    plural: str
    path: str
    selector: str
    namespace: str | None
    replace: Callable[[Iterable[Raw], str | None], None]
    apply: Callable[[Raw], None]
    remove: Callable[[Raw], None]
    version: str = ""
    """Resource version to resume from; empty: list first."""
    is_listed: bool = False
    problem: str = ""
    """Why the last attempt failed; empty after a success."""
    heard_at: float = field(default_factory=time.monotonic)
    num_lists: int = 0


class Watcher:
    """Run ``run`` as a task; it ends only by cancellation."""

    def __init__(
        self,
        api: ApiClient,
        registry: Registry,
        namespaces: Sequence[str],
        rng: random.Random | None = None,
    ) -> None:
        """``namespaces``: empty means all."""
        self._api = api
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries, guards nothing
        self._scopes = [
            scope for namespace in (namespaces or (None,)) for scope in _scopes(registry, namespace)
        ]

    async def run(self) -> None:
        """Follow all scopes, for ever."""
        async with asyncio.TaskGroup() as group:
            for scope in self._scopes:
                group.create_task(self._follow(scope))

    def not_ready(self) -> str:
        """Why the cluster is not known yet; empty once every scope was listed."""
        waiting = [scope for scope in self._scopes if not scope.is_listed]
        return "; ".join(
            f"{scope.plural} in {scope.namespace or 'all namespaces'}: {scope.problem or 'listing'}"
            for scope in waiting
        )

    def ages(self) -> dict[str, float]:
        """Seconds since the API server was last heard of, the oldest scope of each kind."""
        now = time.monotonic()
        found: dict[str, float] = {}
        for scope in self._scopes:
            found[scope.plural] = max(found.get(scope.plural, 0.0), now - scope.heard_at)
        return found

    def lists(self) -> dict[str, int]:
        """Full lists so far, by kind."""
        found: dict[str, int] = {}
        for scope in self._scopes:
            found[scope.plural] = found.get(scope.plural, 0) + scope.num_lists
        return found

    async def _follow(self, scope: Scope) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                if not scope.version:
                    await self._list(scope)
                await self._watch(scope)
            except GoneError:
                log.info("watch too old, listing again", resource=scope.plural)
                scope.version = ""
            except (aiohttp.ClientError, OSError, RefusedError) as error:
                scope.problem = str(error) or type(error).__name__
                log.warning("watch failed", resource=scope.plural, error=scope.problem)
            # A watch that lasted ends as it should; one that ends at once, whatever it says,
            # must not become a loop.
            failures = 0 if time.monotonic() - began > MAX_BACKOFF_S else failures + 1
            delay = min(MAX_BACKOFF_S, MIN_BACKOFF_S * 2 ** min(failures, 10))
            await asyncio.sleep(delay * self._rng.uniform(0.5, 1))

    async def _list(self, scope: Scope) -> None:
        items: list[Raw] = []
        query = {"labelSelector": scope.selector, "limit": str(PAGE_SIZE)}
        timeout = aiohttp.ClientTimeout(total=LIST_TIMEOUT_S)
        while True:
            async with await self._get(scope, query, timeout) as response:
                page = orjson.loads(await response.read())
            items.extend(page.get("items") or [])
            query["continue"] = page["metadata"].get("continue") or ""
            if not query["continue"]:
                break
        scope.replace(items, scope.namespace)
        scope.version = page["metadata"]["resourceVersion"]
        scope.is_listed = True
        scope.num_lists += 1
        _heard(scope)
        log.info("listed", resource=scope.plural, namespace=scope.namespace, count=len(items))

    async def _watch(self, scope: Scope) -> None:
        """Apply events until the server ends the watch."""
        query = {
            "labelSelector": scope.selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": scope.version,
            "timeoutSeconds": str(self._rng.randint(WATCH_S // 2, WATCH_S)),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_S)
        async with await self._get(scope, query, timeout) as response:
            _heard(scope)
            async for line in _lines(response.content):
                _apply_event(scope, orjson.loads(line))

    async def _get(
        self, scope: Scope, query: dict[str, str], limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        target = str(URL(scope.path).with_query({k: v for k, v in query.items() if v}))
        _, url, headers, _, _ = await self._api.param_serialize(
            "GET", target, auth_settings=["BearerToken"]
        )
        try:
            found = await self._api.call_api("GET", url, headers, _request_timeout=limits)
        except ApiException as error:
            raise RefusedError(f"{error.status} {error.reason}") from error
        response: aiohttp.ClientResponse = found.response
        if response.status == GONE:
            response.close()
            raise GoneError
        if not response.ok:
            response.close()
            raise RefusedError(_refusal(scope, response.status))
        return response


def _scopes(registry: Registry, namespace: str | None) -> list[Scope]:
    inside = f"/namespaces/{namespace}" if namespace else ""
    selector = f"{names.MANAGED_BY}={names.MANAGED_BY_VALUE},{names.COMPONENT}=runtime"
    return [
        Scope(
            plural=names.MODEL_PLURAL,
            path=f"/apis/{names.API_VERSION}{inside}/{names.MODEL_PLURAL}",
            selector="",
            namespace=namespace,
            replace=registry.replace_models,
            apply=registry.apply_model,
            remove=registry.remove_model,
        ),
        Scope(
            plural="pods",
            path=f"/api/v1{inside}/pods",
            selector=selector,
            namespace=namespace,
            replace=registry.replace_pods,
            apply=registry.apply_pod,
            remove=registry.remove_pod,
        ),
    ]


def _apply_event(scope: Scope, event: Raw) -> None:
    """One watch event. Raises GoneError or RefusedError for an ERROR event."""
    raw = event["object"]
    match event["type"]:
        case "ADDED" | "MODIFIED":
            scope.apply(raw)
        case "DELETED":
            scope.remove(raw)
        case "ERROR" if raw.get("code") == GONE:
            raise GoneError
        case "ERROR":
            raise RefusedError(f"{raw.get('code')} {raw.get('message')}")
        case _:
            pass  # a bookmark: nothing but a newer version
    scope.version = raw["metadata"]["resourceVersion"]
    _heard(scope)


def _heard(scope: Scope) -> None:
    scope.heard_at = time.monotonic()
    scope.problem = ""


def _refusal(scope: Scope, status: int) -> str:
    match status:
        case 404:
            return f"the API server does not know {scope.plural}; apply the files in crds/ first"
        case 403:
            return f"the service account may not list and watch {scope.plural} (RBAC)"
        case _:
            return f"the API server answered {status}"


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length up to MAX_EVENT_BYTES (the reader's own readline stops at its buffer)."""
    held = bytearray()
    async for chunk in content.iter_any():
        held += chunk
        *whole, rest = held.split(b"\n")
        for line in whole:
            if line:
                yield bytes(line)
        held = rest
        if len(held) > MAX_EVENT_BYTES:
            raise RefusedError(f"a watch event is larger than {MAX_EVENT_BYTES} bytes")


async def connect() -> ApiClient:
    """A client of the cluster: the pod's service account, or the user's kubeconfig outside one.

    Raises:
        kubernetes.aio.config.ConfigException: neither is there.
    """
    configuration = Configuration()
    if os.environ.get(incluster_config.SERVICE_HOST_ENV_NAME):
        loader = incluster_config.InClusterConfigLoader(
            token_filename=str(pod_path(f"{_ACCOUNT}/token")),
            cert_filename=str(pod_path(f"{_ACCOUNT}/ca.crt")),
        )
        loader.load_and_set(configuration)
    else:
        await kube_config.load_kube_config(client_configuration=configuration)
    return ApiClient(configuration)
