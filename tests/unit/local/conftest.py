"""What tests of the local cluster share with those of other processes."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def alone_with_blocks() -> Iterator[None]:
    """Of all tests on this machine that claim address blocks, whoever runs them, one at a time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as held:

        def is_held() -> bool:
            try:
                held.bind("\0terrace.dev/tests/blocks")
            except OSError:
                return False
            return True

        wait_for("other tests to be done with blocks", is_held, every=0.01)
        yield
