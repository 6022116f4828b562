"""The addresses of a cluster with real nodes, and the commands that bring them up.

Owns: who has which address in 10.N.0.0/16, where N is the cluster's block. Pure. Does not own:
running the commands (``namespaces.py``) and the claim on the block (``terrace.local.addresses``).

All nodes share one network namespace. One pair of interfaces joins it to this machine: the end
here has a route to everything inside, so that this machine reaches the API server, pods and
Services directly, and no firewall rule of this machine changes. Pods are routed and not bridged:
two pods of one node would otherwise answer each other past the address translation of Services.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

UPLINK = "uplink"
"""The inner end of the pair of interfaces."""
MAX_NODES = 3
_NARROW = 12
"""Bits of the prefix of a route that surely leads to somebody's network."""
CONTROL_PLANE_PORTS = {
    "apiserver": 6443,
    "etcd": 2379,
    "etcd-peer": 2380,
    "controller-manager": 10257,
    "scheduler": 10259,
}
"""Nothing else listens in the namespace, so that these can be the usual ones."""


@dataclass(frozen=True)
class NodeNetwork:
    """The addresses of the cluster with the block ``number``."""

    number: int

    @property
    def name(self) -> str:
        """Of this machine's interface, and of the cluster's cgroup."""
        return f"terrace{self.number}"

    @property
    def whole(self) -> str:
        """All of it, in CIDR notation."""
        return f"10.{self.number}.0.0/16"

    @property
    def pods(self) -> str:
        """The pods of all nodes; Services are outside."""
        return f"10.{self.number}.0.0/17"

    @property
    def services(self) -> str:
        """ClusterIPs."""
        return f"10.{self.number}.128.0/18"

    @property
    def api_service(self) -> str:
        """ClusterIP of the Service ``kubernetes``: the range's first."""
        return f"10.{self.number}.128.1"

    @property
    def host(self) -> str:
        """This machine's address as pods see it."""
        return f"10.{self.number}.255.1"

    @property
    def control_plane(self) -> str:
        """Where the API server, etcd and the cluster's DNS listen."""
        return f"10.{self.number}.255.2"

    def node(self, index: int) -> str:
        """InternalIP of a node, and the gateway of its pods."""
        return f"10.{self.number}.{index}.1"

    def node_pods(self, index: int) -> str:
        """The pods of one node."""
        return f"10.{self.number}.{index}.0/24"


def node_name(index: int) -> str:
    """Name of a Node."""
    return f"node{index}"


def node_names(count: int) -> list[str]:
    """Names of the first ``count`` nodes."""
    return [node_name(index) for index in range(count)]


def outer_commands(network: NodeNetwork, outer_pid: int) -> list[list[str]]:
    """Arguments of ``ip`` on this machine; the namespace is that of the process ``outer_pid``."""
    return [
        ["link", "add", network.name, "type", "veth", "peer", "name", UPLINK,
         "netns", str(outer_pid)],
        ["address", "add", f"{network.host}/30", "dev", network.name],
        ["link", "set", network.name, "up"],
    ]  # fmt: skip


def inner_commands(network: NodeNetwork, nodes: int) -> list[list[str]]:
    """Arguments of ``ip`` inside the namespace."""
    return [
        ["link", "set", "lo", "up"],
        ["address", "add", f"{network.control_plane}/30", "dev", UPLINK],
        ["link", "set", UPLINK, "up"],
        # This machine may pass on what is for others, if its owner lets it. And without a route
        # the namespace's own processes reach no ClusterIP: it is translated after routing.
        ["route", "add", "default", "via", network.host],
        *(
            ["address", "add", f"{network.node(index)}/32", "dev", "lo"]
            for index in range(nodes)
        ),
    ]  # fmt: skip


def route_command(network: NodeNetwork) -> list[str]:
    """Arguments of ``ip`` on this machine, once both ends are up."""
    return ["route", "add", network.whole, "via", network.control_plane, "src", network.host]


def is_free(network: NodeNetwork, routes: Iterable[tuple[str, str]]) -> bool:
    """Whether no route (destination in CIDR notation, interface) leads into these addresses.

    The cluster's own interface does not count: it may be about to vanish with an earlier run. Nor
    do routes as wide as a default route or as all of 10.0.0.0/8, which private networks have.
    """
    mine = ipaddress.ip_network(network.whole)
    others = [
        ipaddress.ip_network(destination)
        for destination, interface in routes
        if destination != "default" and interface != network.name
    ]
    return not any(mine.overlaps(each) for each in others if each.prefixlen >= _NARROW)
