"""A gateway in this process on a real socket, replicas that follow a script, object builders."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from terrace.api import names
from terrace.gateway.app import Gateway
from terrace.gateway.identity import Signer
from terrace.gateway.limits import Admission, Limits
from terrace.gateway.metrics import Metrics
from terrace.gateway.proxy import Proxy
from terrace.gateway.registry import Registry
from terrace.gateway.routing import Router
from terrace.gateway.server import make_server, serve
from terrace.gateway.upstream import make_session
from terrace_runtime.api.identity import IdentityVerifier

if TYPE_CHECKING:
    import uvicorn

    from terrace_runtime.contract import Identity

PRIVATE_KEY = bytes(range(32))
JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"


def raw_model(
    name: str = "demo",
    namespace: str = "default",
    served: list[str] | None = None,
    created: str = "2026-11-21T00:00:00Z",
    message: str = "",
) -> dict[str, Any]:
    """An InferenceModel as the API server shows it."""
    status: dict[str, Any] = {"servedNames": [name] if served is None else served}
    if message:
        status["conditions"] = [{"type": "Ready", "status": "False", "message": message}]
    return {
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": created},
        "status": status,
    }


def raw_pod(
    name: str = "demo-cpu-0",
    model: str = "demo",
    namespace: str = "default",
    address: str = "127.0.0.1",
    port: int = 8000,
    *,
    ready: bool = True,
    deleted: bool = False,
    uid: str = "1",
) -> dict[str, Any]:
    """A runtime Pod as the API server shows it."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "uid": uid,
        "labels": names.selector_labels(model),
    }
    if deleted:
        metadata["deletionTimestamp"] = "2026-11-21T00:00:00Z"
    return {
        "metadata": metadata,
        "spec": {
            "containers": [{"name": "runtime", "ports": [{"name": "http", "containerPort": port}]}]
        },
        "status": {
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


@dataclass
class Call:
    """One request that reached a replica, and the connection it came on."""

    line: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self, content_type: str, status: int = 200, **more: str) -> None:
        """Begin a chunked answer."""
        fields = {"content-type": content_type, "transfer-encoding": "chunked"} | {
            name.replace("_", "-"): value for name, value in more.items()
        }
        lines = [f"HTTP/1.1 {status} Scripted", *(f"{k}: {v}" for k, v in fields.items())]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        """One chunk of it; waits while the gateway does not read."""
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self.writer.drain()

    async def end(self) -> None:
        """The end of it."""
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def answer(self, body: bytes, status: int = 200, content_type: str = JSON) -> None:
        """A whole answer with its length."""
        head = f"HTTP/1.1 {status} Scripted\r\ncontent-type: {content_type}\r\n"
        self.writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        await self.writer.drain()

    def die(self) -> None:
        """As a killed process: the connection is reset."""
        self.writer.transport.abort()

    async def wait_closed(self) -> None:
        """Until the gateway hangs up."""
        with contextlib.suppress(ConnectionError):
            await self.reader.read()


Script = Callable[[Call], Awaitable[None]]


@dataclass
class Replica:
    """A server that hands every request to its script."""

    script: Script
    calls: list[Call] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, any number of requests."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *rest = head.decode().rstrip().split("\r\n")
                headers = {k.lower(): v for k, _, v in (each.partition(": ") for each in rest)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                call = Call(line, headers, body, reader, writer)
                self.calls.append(call)
                await self.script(call)
        writer.close()


@asynccontextmanager
async def replica(script: Script) -> AsyncIterator[Replica]:
    """A running replica on a free port."""
    made = Replica(script)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for call in made.calls:
            call.writer.close()


class SyncedWatch:
    """A watch that has seen all there is."""

    def ages(self) -> Mapping[str, float]:
        """Fresh."""
        return {"pods": 0.0}

    def lists(self) -> Mapping[str, int]:
        """One of each."""
        return {"pods": 1}


@dataclass
class Running:
    """A gateway that listens."""

    app: Gateway
    port: int
    registry: Registry
    proxy: Proxy
    server: uvicorn.Server
    serving: asyncio.Task[None]

    @property
    def connections(self) -> set[Any]:
        """The protocol of each client."""
        return self.server.server_state.connections

    @property
    def url(self) -> str:
        """Without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def gateway(
    *replicas: Replica,
    not_ready: str = "",
    lame_duck_s: float = 0,
    drain_s: float = 5,
    router_clock: Callable[[], float] = time.monotonic,
    **changes: Any,
) -> AsyncIterator[Running]:
    """A gateway that serves the model ``demo`` from these replicas; ``changes`` are of Limits."""
    limits = replace(Limits(), **changes)
    registry = Registry()
    registry.apply_model(raw_model(message="the model file is being fetched"))
    for index, each in enumerate(replicas):
        registry.apply_pod(raw_pod(f"demo-cpu-{index}", port=each.port))
    admission = Admission(limits)
    metrics = Metrics(registry, SyncedWatch(), admission)
    async with make_session(limits) as session:
        proxy = Proxy(
            registry,
            Router(random.Random(1), router_clock),
            Signer(PRIVATE_KEY, time.time),
            session,
            limits,
            admission,
            metrics,
        )
        app = Gateway(registry, proxy, metrics, lambda: not_ready)
        server = make_server(app, limits, host="127.0.0.1", port=0, drain_timeout_s=drain_s)
        serving = asyncio.create_task(serve(server, app, lame_duck_s))
        await until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield Running(app, port, registry, proxy, server, serving)
        finally:
            # Not uvicorn's own way out, which takes a fifth of a second.
            serving.cancel()
            for listener in server.servers:
                listener.close()
            for connection in list(server.server_state.connections):
                connection.transport.abort()
            await asyncio.wait({serving, *server.server_state.tasks})


def chat(model: str = "demo", *, stream: bool = False, **more: Any) -> bytes:
    """A request body."""
    messages = [{"role": "user", "content": "hello"}]
    return orjson.dumps({"model": model, "messages": messages, "stream": stream} | more)


@dataclass
class Answer:
    """A response as it was on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error object."""
        found: dict[str, Any] = orjson.loads(self.body)["error"]
        return found


@dataclass
class Client:
    """A raw connection to the gateway."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, body: bytes, path: str = "/v1/chat/completions", **more: str) -> None:
        """POST a body."""
        fields = {"host": "gateway", "content-type": JSON, "content-length": str(len(body))}
        fields |= {name.replace("_", "-"): value for name, value in more.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.writer.write(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        await self.writer.drain()

    async def head(self) -> Answer:
        """Status and headers."""
        raw = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        line, *rest = raw.rstrip().split("\r\n")
        headers = {k.lower(): v for k, _, v in (each.partition(": ") for each in rest)}
        return Answer(int(line.split()[1]), headers, b"")

    async def chunk(self) -> bytes:
        """One chunk of a chunked answer; empty at its end."""
        size = int(await self.reader.readline(), 16)
        data = await self.reader.readexactly(size + 2)
        return data[:-2]

    async def answer(self) -> Answer:
        """The whole answer, by length, by chunks or to the end of the connection."""
        answer = await self.head()
        if "content-length" in answer.headers:
            answer.body = await self.reader.readexactly(int(answer.headers["content-length"]))
        else:
            while chunk := await self.chunk():
                answer.body += chunk
        return answer

    async def post(self, body: bytes, path: str = "/v1/chat/completions", **more: str) -> Answer:
        """POST and read it all."""
        await self.send(body, path, **more)
        return await self.answer()

    async def rest(self) -> bytes:
        """What comes until the gateway closes the connection, gently or not."""
        with contextlib.suppress(ConnectionResetError):
            return await self.reader.read()
        return b""

    async def get(self, path: str, method: str = "GET") -> Answer:
        """GET and read it all."""
        self.writer.write(f"{method} {path} HTTP/1.1\r\nhost: gateway\r\n\r\n".encode())
        return await self.answer()


@asynccontextmanager
async def client(running: Running) -> AsyncIterator[Client]:
    """A connection to the gateway."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=2**20)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


def verify(token: str, private_key: bytes = PRIVATE_KEY) -> Identity:
    """What a replica does with the header and RuntimeConfig.trust_key."""
    public = Ed25519PrivateKey.from_private_bytes(private_key).public_key()
    trust_key = base64.urlsafe_b64encode(public.public_bytes_raw()).rstrip(b"=").decode()
    identity = IdentityVerifier(trust_key, clock=lambda: 0).verify(token)
    assert identity is not None
    return identity


async def until(true: Callable[[], object], within_s: float = 30) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(within_s):
        while not true():  # noqa: ASYNC110 - the condition lies in code that knows no events
            await asyncio.sleep(0.002)


async def until_in_own_time(true: Callable[[], object], within_s: float) -> None:
    """Wait until a condition holds; time in which this process does not run hardly counts."""
    for _ in range(round(within_s / 0.01)):
        if true():
            return
        await asyncio.sleep(0.01)
    assert true(), f"not within {within_s} s"
