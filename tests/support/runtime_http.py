"""A replica's HTTP side on a real socket, over a scripted engine."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import openai
from typing_extensions import override

from terrace_runtime.api.app import create_app
from terrace_runtime.api.chat_template import Renderer
from terrace_runtime.api.server import QuietServer, server_config
from terrace_runtime.api.text_guard import TextGuard, split
from terrace_runtime.backend.fake import TEMPLATE
from terrace_runtime.contract import DeviceMemory, EngineReport, RuntimeConfig
from terrace_runtime.engine.request import (
    EngineError,
    EngineStats,
    FinishReason,
    ModelInfo,
    RequestOutput,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from terrace_runtime.api.content_parts import Turn
    from terrace_runtime.api.state import ServerState
    from terrace_runtime.engine.client import RequestOutputs
    from terrace_runtime.engine.request import PromptPart, Request

    Step = RequestOutput | Exception | asyncio.Event
    Script = Callable[[Request], list[Step]]

LONG_S = 60
"""Far more than anything takes, on a machine that does much else at the same time."""


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that no event tells; fail after a minute."""
    async with asyncio.timeout(LONG_S):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.002)


SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def config(**changes: Any) -> RuntimeConfig:
    """What the operator would write for a model ``demo`` that also answers to ``chat``."""
    values: dict[str, Any] = {
        "namespace": "team",
        "model": "demo",
        "served_names": ("demo", "chat"),
        "model_path": "/models/blobs/x.gguf",
        "model_digest": "d" * 64,
        "context_tokens": 256,
        "drain_timeout_s": 5,
    }
    return RuntimeConfig(**values | changes)


def piece(text: str, num_tokens: int = 1, **more: Any) -> RequestOutput:
    """An output; its id is filled in by the engine."""
    return RequestOutput("", text, num_tokens, **more)


def words(*texts: str, finish: FinishReason = FinishReason.STOP) -> list[Step]:
    """One token per text, 7 prompt tokens of which 3 were cached, then the end."""
    outputs: list[Step] = [piece(text, num_prompt_tokens=7, num_cached_tokens=3) for text in texts]
    return [*outputs, piece("", 0, num_prompt_tokens=7, num_cached_tokens=3, finish=finish)]


@dataclass
class ScriptedEngine:
    """An EngineClient that plays a script per request; an Event in it is waited for."""

    script: Script = lambda _: words("Hello", " world")
    refusal: Exception | None = None
    """Raised by submit."""
    start_error: str = ""
    template: str = TEMPLATE
    hold_start: asyncio.Event | None = None
    requests: list[Request] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    error: str = ""
    is_draining: bool = False
    is_closed: bool = False
    stats: EngineStats = field(
        default_factory=lambda: EngineStats(
            waiting=2,
            running=1,
            prompt_tokens=100,
            prompt_seconds=2.0,
            kv_total_tokens=10,
            kv_used_tokens=4,
        )
    )

    report: EngineReport = field(default_factory=EngineReport)
    tier_bytes: int = 0

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            context_tokens=256,
            parallel=4,
            vocabulary=300,
            threads=2,
            chat_template=self.template,
            bos="<s>",
            eos="</s>",
            special_tokens=SPECIAL,
            build="fake-1",
            weights_bytes=1000,
            devices=(DeviceMemory(name="CPU", weights_bytes=1000),),
            tier_bytes=self.tier_bytes,
        )

    async def start(self) -> None:
        if self.hold_start is not None:
            await self.hold_start.wait()
        if self.start_error:
            raise EngineError(self.start_error)

    def submit(self, request: Request) -> RequestOutputs:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        self.open.add(request.id)
        return cast("RequestOutputs", self._play(request))

    async def _play(self, request: Request) -> AsyncGenerator[RequestOutput]:
        try:
            for step in self.script(request):
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    yield step
        finally:
            self.open.discard(request.id)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    async def drain(self, timeout_s: float) -> None:
        self.is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await until(lambda: not self.open)

    async def close(self) -> None:
        self.is_closed = True


class PlainRenderer(Renderer):
    """The fake backend's template without a process; ``TemplateRenderer`` has its own tests."""

    def __init__(self, info: ModelInfo) -> None:
        self._guard = TextGuard(info.special_tokens)

    @property
    @override
    def is_default(self) -> bool:
        return False

    @override
    async def start(self) -> str:
        return ""

    @override
    async def render(self, turns: list[Turn]) -> tuple[PromptPart | int, ...]:
        lines = [
            f"<|im_start|>{turn.role}\n{''.join(turn.marked(self._guard, '1'))}<|im_end|>\n"
            for turn in turns
        ]
        return split("".join(lines) + "<|im_start|>assistant\n", "1")

    @override
    async def close(self) -> None:
        pass


@dataclass
class Site:
    """A running replica."""

    state: ServerState
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, *, strict: bool = True, **more: Any) -> openai.AsyncOpenAI:
        """openai-python, ``strict`` about what it is sent."""
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1",
            api_key="any",
            max_retries=0,
            timeout=LONG_S,
            _strict_response_validation=strict,
            **more,
        )


@contextlib.asynccontextmanager
async def running(
    engine: Any,
    settings: RuntimeConfig | None = None,
    *,
    start: bool = True,
    renderer: Callable[[ModelInfo], Renderer] = PlainRenderer,
) -> AsyncIterator[Site]:
    """Serve ``engine`` on a free port of the loopback."""
    app = create_app(engine, settings or config(), make_renderer=renderer)
    state: ServerState = app.state.server
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = QuietServer(server_config(app))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            if start:
                await state.start()
            await until(lambda: server.started)
            yield Site(state, listener.getsockname()[1])
        finally:
            await stop(server, task)
            await state.close()


async def stop(server: QuietServer, serving: asyncio.Task[None]) -> None:
    """End ``server`` without the tenths of a second that its own end waits."""
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    for listening in server.servers:
        listening.close()
    for connection in list(server.server_state.connections):
        connection.shutdown()
    await until(lambda: not server.server_state.connections)


@dataclass
class Reply:
    """A raw HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes


async def raw(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> Reply:
    """One request over a plain socket, so that nothing is tidied up on the way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: close"]
        lines += [f"{key}: {value}" for key, value in (headers or {}).items()]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return await read_reply(reader)
    finally:
        writer.close()


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """Parse an answer whose connection closes after it."""
    async with asyncio.timeout(LONG_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        rest = await reader.read()
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
    return Reply(int(head[0].split()[1]), headers, rest)
