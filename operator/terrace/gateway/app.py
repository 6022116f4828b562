"""The gateway as an ASGI application: which path does what.

Owns: the routes, health, the model list, and turning an ``ApiError`` into an answer. Does not own:
the way of a proxied request (``proxy.py``). Pure ASGI, because middleware that wraps ``receive``
hides a client's departure and costs time on every chunk.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from terrace import __version__
from terrace.gateway import headers as http_headers
from terrace.gateway.body import ClientGoneError, Receive
from terrace.gateway.errors import ApiError
from terrace_runtime import logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from terrace.gateway.metrics import Metrics
    from terrace.gateway.proxy import Proxy, Scope, Send
    from terrace.gateway.registry import Model, Registry

log = structlog.get_logger("terrace.gateway")
Answer = tuple[int, bytes, bytes]
"""Status, content type, body."""
JSON = b"application/json"
TEXT = b"text/plain; version=0.0.4; charset=utf-8"
MODELS_PATH = "/v1/models"
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_PROXIED = re.compile(r"/v1(/[a-z0-9_-]{1,64}){1,4}")


@dataclass
class Gateway:
    """The ASGI callable."""

    registry: Registry
    proxy: Proxy
    metrics: Metrics
    not_ready: Callable[[], str]
    """Why the cluster's state is not known yet; empty once it is."""
    draining: bool = False
    """SIGTERM came: say so to readiness probes, go on serving."""

    def __post_init__(self) -> None:
        version = orjson.dumps({"version": __version__})
        self._routes: dict[str, Callable[[], Answer | Awaitable[Answer]]] = {
            "/healthz": lambda: (200, TEXT, b"ok\n"),
            "/readyz": self._readyz,
            "/version": lambda: (200, JSON, version),
            "/metrics": self._metrics,
            MODELS_PATH: self._list_models,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        assert scope["type"] == "http"
        request_id = http_headers.request_id(scope["headers"])
        # uvicorn gives each request a task of its own, so that this ends with the request.
        logs.request_id.set(request_id)
        if self.draining:
            send = _closing(send)
        is_proxied = False
        try:
            if scope["method"] == "POST" and _PROXIED.fullmatch(scope["path"]):
                self._check_synced()
                is_proxied = True
                await self.proxy(scope, receive, send, request_id)
                return
            found = self._get(scope["method"], scope["path"])
            status, content_type, body = found if isinstance(found, tuple) else await found
            _log_own(scope, status, "")
            await _answer(send, status, body, content_type, [], request_id)
        except ApiError as error:
            self.metrics.refused(error.code)
            if not is_proxied:
                _log_own(scope, error.status, error.code)
            await _answer(send, error.status, error.body(), JSON, error.headers(), request_id)
        except ClientGoneError:
            log.debug("client left")

    def _get(self, method: str, path: str) -> Answer | Awaitable[Answer]:
        handler = self._routes.get(path)
        if handler is None and path.startswith(f"{MODELS_PATH}/"):
            handler = partial(self._show_model, path.removeprefix(f"{MODELS_PATH}/"))
        if handler is None:
            raise ApiError(404, f"There is nothing at {method} {path[:128]}.", "not_found")
        if method != "GET":
            raise ApiError(
                405, f"{path[:128]} answers GET only.", "method_not_allowed", allow="GET"
            )
        return handler()

    async def _metrics(self) -> Answer:
        return 200, TEXT, await self.metrics.render()

    def _readyz(self) -> Answer:
        why = "draining" if self.draining else self.not_ready()
        return (503, TEXT, f"{why}\n".encode()) if why else (200, TEXT, b"ok\n")

    def _check_synced(self) -> None:
        if why := self.not_ready():
            message = f"The gateway does not know the cluster yet: {why}"
            raise ApiError(503, message, "gateway_starting", retry_after_s=1)

    def _list_models(self) -> Answer:
        self._check_synced()
        data = [
            _card(name, model) for model in self.registry.models() for name in self._names(model)
        ]
        return 200, JSON, orjson.dumps({"object": "list", "data": data})

    def _show_model(self, name: str) -> Answer:
        self._check_synced()
        return 200, JSON, orjson.dumps(_card(name, self.proxy.resolve(name)))

    def _names(self, model: Model) -> list[str]:
        won = [name for name in model.served_names if self.registry.resolve(name) is model]
        return won or [str(model.key)]


def _card(name: str, model: Model) -> dict[str, object]:
    owner = model.key.namespace
    return {"id": name, "object": "model", "created": model.created, "owned_by": owner}


def _closing(send: Send) -> Send:
    """``send`` for answers that end their connection: the client's next one goes to another pod."""

    async def closing(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return closing


def _log_own(scope: Scope, status: int, refusal: str) -> None:
    """The line of a request that needed no replica; the others are the proxy's."""
    path = scope["path"]
    if path not in _QUIET:
        method = scope["method"]
        log.info("request", method=method, path=path[:256], status=status, refusal=refusal)


async def _answer(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes,
    headers: http_headers.RawHeaders,
    request_id: str,
) -> None:
    fixed = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (http_headers.REQUEST_ID, request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": fixed + headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
