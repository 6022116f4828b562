"""Which network addresses a download may connect to.

Owns: the rule (public addresses, plus the networks that the pool allows) and a resolver for
aiohttp that applies it, so that the address checked is the address connected to. Does not own:
requests (``download``).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver

from terrace_runtime.models.errors import FetchError

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from aiohttp.abc import ResolveResult

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NEVER_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure's own host: credentials of the node, by plain HTTP.
        "192.0.0.0/24",  # Protocol assignments; Oracle's cloud has metadata there.
        "fec0::/10",  # Site-local, before fc00::/7.
        "64:ff9b:1::/48",  # Translated to IPv4 as the site likes.
        "::/96",  # An IPv4 address below zeros.
        "::ffff:0:0:0/96",  # The same for stateless translation.
    )
)
"""Networks that this Python takes for public, or not yet for anything else."""


class AddressRule:
    """Says for one address whether it may be reached."""

    def __init__(self, allowed_networks: Iterable[str]) -> None:
        """Raises FetchError for a network that is not in CIDR notation."""
        self._allowed = [_network(text) for text in allowed_networks]

    def permits(self, text: str) -> bool:
        """Whether the address ``text`` may be connected to; anything unreadable may not."""
        try:
            address = _embedded(ipaddress.ip_address(text.partition("%")[0]))
        except ValueError:
            return False
        if any(address.version == net.version and address in net for net in self._allowed):
            return True
        if any(address.version == net.version and address in net for net in _NEVER_PUBLIC):
            return False
        return address.is_global and not address.is_multicast

    def check_host(self, host: str) -> None:
        """Refuse a host that is itself an address, which no resolver would see."""
        try:
            ipaddress.ip_address(host.strip("[]").partition("%")[0])
        except ValueError:
            return
        if not self.permits(host.strip("[]")):
            raise refused(host)


class GuardedResolver(AbstractResolver):
    """Resolves names and leaves out what the rule refuses."""

    def __init__(self, rule: AddressRule) -> None:
        self._rule = rule
        self._resolver = ThreadedResolver()

    async def resolve(
        self,
        host: str,
        port: int = 0,
        # aiohttp's own signature, default included.
        family: socket.AddressFamily = 0,  # type: ignore[assignment]
    ) -> list[ResolveResult]:
        """Addresses of ``host`` that may be connected to; raises FetchError when none may."""
        found = await self._resolver.resolve(host, port, family)
        permitted = [entry for entry in found if self._rule.permits(entry["host"])]
        if found and not permitted:
            raise refused(host)
        return permitted

    async def close(self) -> None:
        """Nothing is held."""


def refused(host: str) -> FetchError:
    """The error for a host whose addresses may not be reached."""
    return FetchError(
        "AddressRefused",
        f"{host[:253]} is a private, loopback or otherwise not public address; "
        "add its network to the pool's access.allowedNetworks if it is meant",
    )


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise FetchError(
            "AddressRefused", f"allowed network {text[:64]!r} is not in CIDR notation"
        ) from None


def _embedded(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one: that is where packets would end."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
