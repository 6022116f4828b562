"""Who has which address on real nodes, and which addresses are free."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from terrace.local.addresses import FIRST_BLOCK, LAST_BLOCK, claim_block
from terrace.local.kubelets.network import MAX_NODES, NodeNetwork, is_free, node_names
from terrace.local.state import ClusterOptions

blocks = st.integers(FIRST_BLOCK, LAST_BLOCK)


def inside(address: str, network: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.IPv4Network(network)


@given(blocks)
def test_all_addresses_lie_in_the_clusters_own_and_no_two_ranges_meet(number: int) -> None:
    network = NodeNetwork(number)
    whole = ipaddress.IPv4Network(network.whole)
    pods = [ipaddress.IPv4Network(network.node_pods(index)) for index in range(MAX_NODES)]
    services = ipaddress.IPv4Network(network.services)
    link = ipaddress.IPv4Network(f"{network.host}/30", strict=False)
    ranges = [*pods, services, link]
    for index, each in enumerate(ranges):
        assert each.subnet_of(whole)
        assert not any(each.overlaps(other) for other in ranges[index + 1 :])
    assert all(each.subnet_of(ipaddress.IPv4Network(network.pods)) for each in pods)
    assert not services.overlaps(ipaddress.IPv4Network(network.pods))
    assert inside(network.control_plane, str(link))
    assert network.api_service == str(next(services.hosts()))
    for index in range(MAX_NODES):
        assert inside(network.node(index), network.node_pods(index))


@given(blocks, blocks)
def test_two_clusters_never_meet(one: int, other: int) -> None:
    first, second = NodeNetwork(one), NodeNetwork(other)
    meet = ipaddress.IPv4Network(first.whole).overlaps(ipaddress.IPv4Network(second.whole))
    assert meet == (one == other) == (first.name == second.name)


@given(blocks)
def test_the_interfaces_name_is_short_enough_for_the_kernel(number: int) -> None:
    assert len(NodeNetwork(number).name) <= 15


@pytest.mark.parametrize(
    ("destination", "interface", "expected"),
    [
        ("default", "eth0", "free"),
        ("192.168.1.0/24", "eth0", "free"),
        ("10.77.3.0/24", "eth0", "taken"),
        ("10.77.3.4", "eth0", "taken"),
        ("10.64.0.0/12", "vpn0", "taken"),
        ("10.0.0.0/8", "vpn0", "free"),
        ("0.0.0.0/1", "vpn0", "free"),
        ("10.77.0.0/16", "terrace77", "free"),
        ("10.77.0.0/16", "terrace78", "taken"),
    ],
)
def test_a_route_into_the_addresses_takes_them(
    destination: str, interface: str, expected: str
) -> None:
    is_ours = is_free(NodeNetwork(77), [(destination, interface)])
    assert ("free" if is_ours else "taken") == expected


@pytest.mark.usefixtures("alone_with_blocks")
def test_a_block_of_no_use_is_passed_over_and_let_go() -> None:
    first = claim_block(FIRST_BLOCK)
    first.release()
    refused: list[int] = []

    def is_usable(number: int) -> bool:
        refused.append(number)
        return len(refused) > 1

    second = claim_block(first.block.number, is_usable)
    assert second.block.number == refused[1] != refused[0]
    again = claim_block(refused[0])
    assert again.block.number == refused[0]
    second.release()
    again.release()


def test_nodes_are_named_by_number() -> None:
    assert node_names(3) == ["node0", "node1", "node2"]


@pytest.mark.parametrize("options", [{"kubelets": 1}, {"nodes": 0, "kubelets": 4}])
def test_real_nodes_stand_in_place_of_the_host_node_and_are_few(options: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ClusterOptions.model_validate(options)
