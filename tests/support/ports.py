"""Ports and addresses that nobody else uses while a test does."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def refusing_port(host: str = "127.0.0.1") -> Iterator[int]:
    """A port at which connections are refused: it is taken, and nobody listens."""
    with socket.socket() as held:
        held.bind((host, 0))
        yield held.getsockname()[1]


def own_address(number: int) -> str:
    """A loopback address of this process alone, below those that clusters take; 8 of them."""
    pid = os.getpid()
    return f"127.{8 + number % 8}.{pid // 256 % 256}.{pid % 256}"
