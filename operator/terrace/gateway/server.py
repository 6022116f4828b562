"""uvicorn as the gateway needs it: bounded connections, OpenAI errors, a drain on SIGTERM.

Owns: timeouts and counts on the client's side of a connection, and the order of a shutdown. Does
not own: requests (``app.py``). Subclasses uvicorn's h11 protocol, whose parser is strict and bounds
the head of a request.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from terrace.gateway.errors import error_body

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.gateway.app import Gateway
    from terrace.gateway.limits import Limits

LAME_DUCK_S = 3.0
"""Seconds between readiness turning red and the end of accepting: clients' view of us lags."""


class BoundedProtocol(H11Protocol):
    """Cuts off clients that send or read too slowly, or are too many."""

    def __init__(self, limits: Limits, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        """Runs while headers are awaited or the client's buffer is full."""

    # uvicorn narrows the argument of asyncio.Protocol; so must who inherits from it.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            transport.abort()
        else:
            self._arm(self._limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes came: the rest of the headers has to follow soon."""
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not self.flow.write_paused:
                self._disarm()
        elif self._timer is None:
            self._arm(self._limits.header_timeout_s)

    def pause_writing(self) -> None:
        """The client reads more slowly than the replica writes."""
        super().pause_writing()
        self._disarm()
        self._arm(self._limits.stall_timeout_s)

    def resume_writing(self) -> None:
        """The client caught up."""
        super().resume_writing()
        self._disarm()

    def send_400_response(self, msg: str) -> None:
        """What came was not HTTP."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.abort()
            return
        body = error_body(400, msg, "invalid_http")
        head = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        response = h11.Response(status_code=400, headers=head)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def _arm(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def make_server(
    app: Gateway, limits: Limits, *, host: str, port: int, drain_timeout_s: float
) -> uvicorn.Server:
    """A server that is not started; run it with ``serve``."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=cast("Any", partial(BoundedProtocol, limits)),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=max(1, round(drain_timeout_s)),
        h11_max_incomplete_event_size=limits.max_header_bytes,
    )
    return _Server(config)


async def serve(server: uvicorn.Server, app: Gateway, lame_duck_s: float = LAME_DUCK_S) -> None:
    """Run until SIGTERM or SIGINT, then drain; a second signal ends at once."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if app.draining:
            server.should_exit = server.force_exit = True
            return
        app.draining = True
        loop.call_later(lame_duck_s, setattr, server, "should_exit", True)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    await server.serve()


class _Server(uvicorn.Server):
    """Leaves signals to ``serve``."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
