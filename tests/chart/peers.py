"""Who may connect to whom under a set of NetworkPolicies.

Owns: their meaning for pods, as far as ours go: selectors by label, named ports, blocks of
addresses. Nothing enforces policies on this machine, so tests ask this instead.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """A pod, or with an address alone something outside the cluster."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    """By name."""
    address: str = "10.0.0.1"


def may_connect(policies: Sequence[Manifest], source: Peer, target: Peer, port: int) -> bool:
    """Whether both sides' policies let it through. TCP."""
    return _allows(policies, "Egress", source, target, port, target) and _allows(
        policies, "Ingress", target, source, port, target
    )


def _allows(
    policies: Sequence[Manifest], way: str, subject: Peer, other: Peer, port: int, target: Peer
) -> bool:
    if not subject.namespace:
        return True
    concerned = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == subject.namespace
        and way in policy["spec"]["policyTypes"]
        and _selects(policy["spec"]["podSelector"], subject.labels)
    ]
    if not concerned:
        return True  # Pods that no policy selects are open.
    key = "from" if way == "Ingress" else "to"
    return any(
        _has_port(rule.get("ports"), port, target)
        and (not rule.get(key) or any(_is_peer(each, other, subject) for each in rule[key]))
        for spec in concerned
        for rule in spec.get(way.lower()) or []
    )


def _has_port(ports: Sequence[Manifest] | None, port: int, target: Peer) -> bool:
    if not ports:
        return True
    return any(
        port in (each["port"], target.ports.get(str(each["port"])))
        for each in ports
        if each.get("protocol", "TCP") == "TCP"
    )


def _is_peer(wanted: Manifest, other: Peer, subject: Peer) -> bool:
    if "ipBlock" in wanted:
        address = ipaddress.ip_address(other.address)
        block = wanted["ipBlock"]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(each) for each in block.get("except", [])
        )
    if not other.namespace:
        return False
    if "namespaceSelector" in wanted:
        name = {"kubernetes.io/metadata.name": other.namespace}
        if not _selects(wanted["namespaceSelector"], name):
            return False
    elif other.namespace != subject.namespace:
        return False
    return _selects(wanted.get("podSelector", {}), other.labels)


def _selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    unknown = set(selector) - {"matchLabels"}
    if unknown:
        raise NotImplementedError(f"our policies select by labels alone, not by {unknown}")
    return bool(selector.get("matchLabels", {}).items() <= labels.items())
