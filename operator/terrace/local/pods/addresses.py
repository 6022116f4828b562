"""One loopback address per pod. Pure.

Owns: which addresses of a range are taken. Linux lets any process bind any address of 127/8, so
all pods may use the same port. Next: the host node gives one to each ``PodRunner``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address


class NoAddressError(RuntimeError):
    """Every address of the range is in use."""


@dataclass
class AddressPool:
    """The addresses from ``first`` to ``last``, both included."""

    first: IPv4Address
    last: IPv4Address
    _taken: set[IPv4Address] = field(default_factory=set)
    _next: int = 0
    """Goes round, so that an address rests before it means another pod."""

    @classmethod
    def parse(cls, text: str) -> AddressPool:
        """``127.16.1.0-127.16.255.254``; raises ValueError."""
        complaint = f"{text!r} is not a range of loopback addresses, FIRST-LAST"
        first, _, last = text.partition("-")
        try:
            pool = cls(IPv4Address(first), IPv4Address(last))
        except ValueError as error:
            raise ValueError(complaint) from error
        if not pool.first.is_loopback or not pool.last.is_loopback or pool.size < 1:
            raise ValueError(complaint)
        return pool

    @property
    def size(self) -> int:
        """How many addresses there are."""
        return int(self.last) - int(self.first) + 1

    def take(self, preferred: str = "") -> str:
        """``preferred`` if it is free and ours, else the next free one; raises NoAddressError."""
        wanted = IPv4Address(preferred) if preferred else None
        if wanted is not None and self.first <= wanted <= self.last and wanted not in self._taken:
            self._taken.add(wanted)
            return str(wanted)
        for step in range(self.size):
            candidate = self.first + (self._next + step) % self.size
            if candidate not in self._taken:
                self._next = (self._next + step + 1) % self.size
                self._taken.add(candidate)
                return str(candidate)
        raise NoAddressError(f"all {self.size} pod addresses of this node are in use")

    def give_back(self, address: str) -> None:
        """Frees an address; one that was never taken is no error."""
        self._taken.discard(IPv4Address(address))
