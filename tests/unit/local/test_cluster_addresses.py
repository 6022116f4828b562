"""Who gets which loopback block and which port."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from support.ports import own_address
from terrace.local import processes
from terrace.local.addresses import (
    FIRST_BLOCK,
    LAST_BLOCK,
    BlockClaim,
    choose_ports,
    claim_again,
    claim_block,
)

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("a", "b", "c")
ADDRESS = own_address(0)

pytestmark = pytest.mark.usefixtures("alone_with_blocks")


def free_claim() -> BlockClaim:
    """A block that nobody had; tests of other sessions run beside us."""
    return claim_block(LAST_BLOCK - os.getpid() % 50)


def test_a_claimed_block_is_given_to_nobody_else() -> None:
    first = free_claim()
    second = claim_block(first.block.number)
    assert second.block.number != first.block.number
    first.release()
    second.release()


def test_the_search_goes_round_at_the_last_block() -> None:
    claim = claim_block(LAST_BLOCK)
    beyond = claim_block(LAST_BLOCK)
    assert FIRST_BLOCK <= beyond.block.number < LAST_BLOCK
    claim.release()
    beyond.release()


def test_a_released_block_can_be_claimed_again() -> None:
    claim = free_claim()
    assert claim_again(claim.block.number) is None
    claim.release()
    again = claim_again(claim.block.number)
    assert again is not None
    again.release()


def test_a_claim_lives_as_long_as_the_process_that_inherited_it(tmp_path: Path) -> None:
    claim = free_claim()
    number = claim.block.number
    argv = ["/bin/sleep", "60"]
    child = processes.spawn(argv, tmp_path / "log", dict(os.environ), claim.holder.fileno())
    claim.release()
    assert claim_again(number) is None
    processes.stop([child], grace_s=30)
    again = claim_again(number)
    assert again is not None
    again.release()


def test_addresses_of_a_block_do_not_overlap() -> None:
    claim = free_claim()
    block = claim.block
    claim.release()
    assert block.node == f"127.{block.number}.0.1"
    assert block.control_plane == f"127.{block.number}.0.2"
    assert block.pods == f"127.{block.number}.1.0-127.{block.number}.255.254"


def test_ports_differ_and_are_free() -> None:
    ports = choose_ports(ADDRESS, NAMES, {})
    assert len(set(ports.values())) == len(NAMES)
    with socket.socket() as listener:
        listener.bind((ADDRESS, ports["a"]))


def test_wanted_ports_are_kept_so_that_kubeconfigs_stay_true() -> None:
    ports = choose_ports(ADDRESS, NAMES, {})
    assert choose_ports(ADDRESS, NAMES, ports) == ports


def test_a_wanted_port_that_another_process_took_is_replaced() -> None:
    ports = choose_ports(ADDRESS, NAMES, {})
    with socket.socket() as other:
        other.bind((ADDRESS, ports["b"]))
        other.listen()
        chosen = choose_ports(ADDRESS, NAMES, ports)
    assert (chosen["a"], chosen["c"]) == (ports["a"], ports["c"])
    assert chosen["b"] != ports["b"]
