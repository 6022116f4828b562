"""Loopback addresses and ports of a cluster: who has which, without races.

Owns: the claim on one block 127.N.0.0/16 and the choice of free ports in it. Does not own: who
listens where (``control_plane.py``) and pod addresses within the block (``hostnode.py``).

Linux lets any process bind any address of 127/8, so every cluster takes a block of its own and
clusters cannot meet on a port. The claim is an abstract Unix socket: like the loopback it
belongs to the network namespace, it is seen by all users, and because the cluster's processes
inherit it, it lasts exactly as long as one of them lives, however they end.
"""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.local.errors import LocalClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_BLOCK = 16
LAST_BLOCK = 250


@dataclass(frozen=True)
class AddressBlock:
    """The addresses of one cluster, all in 127.``number``.0.0/16."""

    number: int

    @property
    def node(self) -> str:
        """The host node's own address: its kubelet API."""
        return f"127.{self.number}.0.1"

    @property
    def control_plane(self) -> str:
        """Where etcd, the API server, the controller manager and the scheduler listen."""
        return f"127.{self.number}.0.2"

    @property
    def pods(self) -> str:
        """First and last address for pods, as the node agent wants them."""
        return f"127.{self.number}.1.0-127.{self.number}.255.254"


@dataclass(frozen=True)
class BlockClaim:
    """A block that is ours while ``holder`` is open here or in a child."""

    block: AddressBlock
    holder: socket.socket

    def release(self) -> None:
        """Give this process's hold up; children that inherited it keep theirs."""
        self.holder.close()


def claim_block(
    preferred: int, is_usable: Callable[[int], bool] = lambda _number: True
) -> BlockClaim:
    """Claim ``preferred`` or, where it is taken or of no use, the next free block after it."""
    count = LAST_BLOCK - FIRST_BLOCK + 1
    for step in range(count):
        number = FIRST_BLOCK + (preferred - FIRST_BLOCK + step) % count
        holder = _hold(number)
        if holder is None:
            continue
        if is_usable(number):
            return BlockClaim(AddressBlock(number), holder)
        holder.close()
    raise LocalClusterError(
        f"all {count} address blocks are in use; stop clusters with `terrace local down`"
    )


def claim_again(number: int) -> BlockClaim | None:
    """Claim exactly this block; None while a process of a cluster holds it."""
    holder = _hold(number)
    return None if holder is None else BlockClaim(AddressBlock(number), holder)


def _hold(number: int) -> socket.socket | None:
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        holder.bind(f"\0terrace.dev/local/127.{number}.0.0")
    except OSError as error:
        holder.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return holder


def choose_ports(address: str, names: tuple[str, ...], wanted: dict[str, int]) -> dict[str, int]:
    """A free port for each name: the wanted one if nobody listens there, else the kernel's choice.

    All are bound before any is let go, so that they differ. Between here and the component's own
    bind only a process that listens on all addresses can come in; the block keeps others away.
    """
    ports = {}
    with ExitStack() as held:
        for name in names:
            listener = held.enter_context(_listener(address, wanted.get(name, 0)))
            ports[name] = int(listener.getsockname()[1])
    return ports


def _listener(address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        listener.listen(1)
    except OSError as error:
        listener.close()
        if port and error.errno == errno.EADDRINUSE:
            return _listener(address, 0)
        raise
    return listener
