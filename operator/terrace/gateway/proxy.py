"""One request's way: bounds -> body -> model -> endpoint -> the replica's bytes, unchanged.

Owns: the order of those steps, retries, cancellation and what a client sees when a replica dies.
Does not own: sockets to clients (``server.py``) or who is ready (``registry.py``). Memory is
bounded: ``send`` waits while the client's buffer is full, and aiohttp stops reading meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import structlog
from yarl import URL

from terrace.gateway import headers as http_headers
from terrace.gateway.body import ClientGoneError, Receive, read_body, requested_model
from terrace.gateway.errors import ApiError, error_event
from terrace.gateway.sse import EventCutter
from terrace.gateway.upstream import Body
from terrace_runtime.contract import CACHED_TOKENS_HEADER

if TYPE_CHECKING:
    from terrace.gateway.identity import Priority, Signer
    from terrace.gateway.limits import Admission, Limits
    from terrace.gateway.metrics import Metrics
    from terrace.gateway.registry import Endpoint, Model, Registry
    from terrace.gateway.routing import Router

Send = Callable[[Any], Awaitable[None]]
Scope = Any
log = structlog.get_logger("terrace.gateway")

CLIENT_GONE = 499
"""nginx's status for a client that left; only in metrics."""
EVENT_STREAM = "text/event-stream"
KNOWN_NAMES_SHOWN = 5
LAST_WORDS_S = 1.0
FINAL_STATUSES = range(200, 600)
UNAVAILABLE = 503


@dataclass(slots=True)
class Exchange:
    """One request and what is known of it so far."""

    scope: Scope
    receive: Receive
    send: Send
    request_id: str
    started: float = field(default_factory=time.monotonic)
    body: bytes = b""
    priority: Priority = "interactive"
    model: Model | None = None
    status: int = 0
    """0: nothing was sent to the client yet."""
    is_stream: bool = False
    """The answer is server-sent events."""
    replica: str = ""
    """The pod that got the request."""
    cached_tokens: str = ""
    """How many of the prompt's tokens it had, as it says."""
    refusal: str = ""
    """Our own code for an answer that no replica gave."""
    num_received: int = 0
    """Bytes of the body."""
    num_sent: int = 0
    """Bytes of the replica's answer so far."""

    @property
    def seconds(self) -> float:
        """Since the request's headers were read."""
        return time.monotonic() - self.started


@dataclass(slots=True)
class Proxy:
    """Handles ``POST /v1/*``."""

    registry: Registry
    router: Router
    signer: Signer
    session: aiohttp.ClientSession
    limits: Limits
    admission: Admission
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        """Answer one request.

        Raises:
            ApiError: nothing was sent yet; the caller answers with it.
            ClientGoneError: the client left.
        """
        exchange = Exchange(scope, receive, send, request_id)
        code = 500
        try:
            await self._handle(exchange)
            code = exchange.status
        except ApiError as error:
            code, exchange.refusal = error.status, error.code
            raise
        except asyncio.CancelledError:
            # Only uvicorn cancels from outside, when the drain's time is over, and only waits for
            # the end, which is near: so the client hears why instead.
            code = 503
            await _say_stopping(exchange)
        except ClientGoneError:
            code = CLIENT_GONE
            raise
        except Exception as error:
            log.exception("bug", request_id=request_id)
            if exchange.status:
                raise
            raise ApiError(500, "The gateway failed; its log says why.", "bug") from error
        finally:
            model = exchange.model.key if exchange.model else None
            self.metrics.ended(model, code, exchange.seconds)
            if model is not None:
                self.metrics.transferred(model, exchange.num_received, exchange.num_sent)
            _log_access(exchange, code)

    async def _handle(self, exchange: Exchange) -> None:
        with self.admission.request() as hold:
            headers = exchange.scope["headers"]
            exchange.priority = http_headers.priority(headers)
            exchange.body = await read_body(exchange.receive, headers, self.limits, hold)
            model = self.resolve(requested_model(exchange.body))
            exchange.model = model
            exchange.num_received = len(exchange.body)
            self.metrics.started(model.key)
            async with _while_client_listens(exchange.receive):
                response, endpoint = await self._open(exchange, model)
                exchange.replica = str(endpoint.pod)
                exchange.cached_tokens = response.headers.get(CACHED_TOKENS_HEADER, "")[:20]
                try:
                    exchange.body = b""
                    hold.release()
                    await self._relay(exchange, model, response)
                finally:
                    # Closes the connection unless the answer was read to its end: the replica
                    # sees that and stops generating.
                    response.close()
                    self.router.finished(endpoint)

    def resolve(self, name: str) -> Model:
        """The model of that name.

        Raises:
            ApiError: 404, with a few names that exist.
        """
        model = self.registry.resolve(name)
        if model is not None:
            return model
        known = self.registry.some_names(KNOWN_NAMES_SHOWN)
        hint = f"Known models: {', '.join(known)}" if known else "No model is served yet"
        why = f"The model {name!r} does not exist. {hint}; GET /v1/models lists all."
        raise ApiError(404, why, "model_not_found", "model")

    async def _open(
        self, exchange: Exchange, model: Model
    ) -> tuple[aiohttp.ClientResponse, Endpoint]:
        """The head of some replica's answer; another is tried only while none took the request."""
        if not self.registry.endpoints(model.key):
            raise _not_ready(model)
        token = self.signer.token("", exchange.priority, model.key)
        headers = http_headers.to_replica(exchange.scope["headers"], exchange.request_id, token)
        tried: list[Endpoint] = []
        # Looked up each time: the successor of one that leaves may be known by now.
        while endpoint := self.router.pick(self.registry.endpoints(model.key), tried):
            tried.append(endpoint)
            self.router.started(endpoint)
            response = None
            try:
                response = await self.session.post(
                    _target(endpoint, exchange.scope),
                    data=Body(exchange.body),
                    headers=headers,
                    allow_redirects=False,
                )
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                self.router.failed(endpoint)
                self._note_failure(exchange, model, endpoint, "connect", error)
            except (aiohttp.ClientError, OSError) as error:
                self._note_failure(exchange, model, endpoint, "before_first_byte", error)
                raise _replica_died() from error
            else:
                others = {*self.registry.endpoints(model.key)}.difference(tried)
                if response.status != UNAVAILABLE or not others:
                    return response, endpoint
                # It loads, drains or is busy, and another one will do.
                log.info("replica refused", pod=str(endpoint.pod), request_id=exchange.request_id)
                self.router.failed(endpoint)
                response.close()
                response = None
            finally:
                if response is None:
                    self.router.finished(endpoint)
        why = f"No replica of {model.key} could be reached. Try again in a second."
        raise ApiError(503, why, "model_unreachable", retry_after_s=1)

    async def _relay(
        self, exchange: Exchange, model: Model, response: aiohttp.ClientResponse
    ) -> None:
        """Pass the answer on, its head together with its first byte.

        So a replica that dies between the two is still a 502, which clients try again.
        """
        if response.status not in FINAL_STATUSES:
            raise _replica_died()
        exchange.is_stream = response.content_type == EVENT_STREAM
        cutter = EventCutter() if exchange.is_stream else None
        try:
            chunk = await response.content.readany()
            self.metrics.first_byte(model.key, exchange.seconds)
            await _start(exchange, response)
            while chunk:
                exchange.num_sent += len(chunk)
                if cutter is not None:
                    chunk = cutter.feed(chunk)
                if chunk:
                    await exchange.send(_body(chunk, more=True))
                chunk = await response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            stage = "mid_stream" if exchange.status else "before_first_byte"
            self._note_failure(exchange, model, None, stage, error)
            if not exchange.status:
                raise _replica_died() from error
            if cutter is None:
                # The server closes the connection of an answer that is not complete, which is
                # the one way to say so inside a JSON body.
                return
            await exchange.send(_body(error_event(_DIED, "upstream_failed"), more=False))
        else:
            await exchange.send(_body(cutter.rest() if cutter else b"", more=False))

    def _note_failure(
        self,
        exchange: Exchange,
        model: Model,
        endpoint: Endpoint | None,
        stage: str,
        error: Exception,
    ) -> None:
        self.metrics.upstream_failed(model.key, stage)
        log.warning(
            "replica failed",
            model=str(model.key),
            pod=str(endpoint.pod) if endpoint else None,
            stage=stage,
            request_id=exchange.request_id,
            error=f"{type(error).__name__}: {error}",
        )


@asynccontextmanager
async def _while_client_listens(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client leaves.

    Raises:
        ClientGoneError: it left.
    """
    gone = False

    async def wait() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        scope.reschedule(0)  # a deadline in the past: the block is cancelled now

    try:
        async with asyncio.timeout(None) as scope:
            watcher = asyncio.create_task(wait())
            try:
                yield
            finally:
                watcher.cancel()
    except TimeoutError:
        if gone:
            raise ClientGoneError from None
        raise


def _log_access(exchange: Exchange, code: int) -> None:
    """One line per request; tokens and the reason of the end are in the replica's, by the id."""
    log.info(
        "request",
        request_id=exchange.request_id,
        path=exchange.scope["path"],
        model=str(exchange.model.key) if exchange.model else "",
        status=code,
        duration_ms=round(exchange.seconds * 1000, 1),
        stream=exchange.is_stream,
        priority=exchange.priority,
        replica=exchange.replica,
        cached_tokens=exchange.cached_tokens,
        refusal=exchange.refusal,
        received_bytes=exchange.num_received,
        sent_bytes=exchange.num_sent,
    )


async def _say_stopping(exchange: Exchange) -> None:
    why = "The gateway is stopping. Send the request again."
    if not exchange.status:
        raise ApiError(503, why, "gateway_stopping", retry_after_s=1)
    if exchange.is_stream:
        # The client may not be reading.
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await exchange.send(_body(error_event(why, "gateway_stopping"), more=False))


async def _start(exchange: Exchange, response: aiohttp.ClientResponse) -> None:
    passed = http_headers.to_client(response.raw_headers)
    passed.append((http_headers.REQUEST_ID, exchange.request_id.encode()))
    exchange.status = response.status
    await exchange.send(
        {"type": "http.response.start", "status": response.status, "headers": passed}
    )


def _body(chunk: bytes, *, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": chunk, "more_body": more}


def _target(endpoint: Endpoint, scope: Scope) -> URL:
    query = scope["query_string"].decode("ascii")
    path = scope["raw_path"].decode("ascii")
    return URL(f"{endpoint.url}{path}{'?' + query if query else ''}", encoded=True)


def _not_ready(model: Model) -> ApiError:
    why = model.message or "no replica is ready"
    message = f"The model {model.key} is not ready: {why}"
    return ApiError(503, message, "model_not_ready", retry_after_s=5)


_DIED = "The replica died while it answered. Send the request again."


def _replica_died() -> ApiError:
    return ApiError(502, _DIED, "upstream_failed")
