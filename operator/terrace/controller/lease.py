"""Leader election over one Lease: take it, renew it, end when it is lost, release it at the end.

Owns: the Lease object and the rules of holding it. Does not own: what a leader does. The record
follows client-go: a holder is replaced when *we* have seen no renewal for the lease's length,
by our own monotonic clock, so that clocks of two machines need not agree.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from terrace.api.names import Key
from terrace.controller.kinds import LEASE, Kind, Manifest
from terrace.controller.port import Cluster, ClusterError, ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from terrace.controller.config import OperatorConfig

log = structlog.get_logger()

LEASE_NAME = "terrace-operator"
RELEASE_TRIES = 3


class LeaseLostError(Exception):
    """Another process may lead by now: this one must end at once."""


@dataclass(slots=True)
class _Seen:
    """The record as last read, and when (monotonic) it last changed."""

    version: str = ""
    at: float = float("-inf")


class LeaderLease:
    """One candidate for leadership."""

    def __init__(
        self,
        cluster: Cluster,
        config: OperatorConfig,
        clock: Callable[[], float],
        now: Callable[[], datetime],
    ) -> None:
        self._cluster = cluster
        self._config = config
        self._clock = clock
        self._now = now
        self._key = Key(config.pod_namespace, LEASE_NAME)
        self._seen = _Seen()
        self.is_held = False
        self.is_checked = False
        """Whether the record was read or written at least once: we know who leads."""

    async def acquire(self) -> None:
        """Wait until this process leads."""
        while not await self._try_hold():  # noqa: ASYNC110 -- it polls a remote record
            await asyncio.sleep(self._config.retry_s)

    async def hold(self) -> None:
        """Renew for ever; raises ``LeaseLostError`` when that fails for too long."""
        renewed_at = self._clock()
        while True:
            await asyncio.sleep(self._config.retry_s)
            remaining_s = renewed_at + self._config.renew_s - self._clock()
            held = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, remaining_s)):
                    held = await self._try_hold()
            if held:
                renewed_at = self._clock()
            elif not self.is_held or self._clock() - renewed_at >= self._config.renew_s:
                self.is_held = False
                raise LeaseLostError(f"Lease {self._key} was not renewed in time or was taken")

    async def release(self) -> None:
        """Give the lease up, so that the next one need not wait. Never raises."""
        if not self.is_held:
            return
        self.is_held = False
        with contextlib.suppress(ClusterError):
            for _ in range(RELEASE_TRIES):
                if await self._let_go():
                    return

    async def _let_go(self) -> bool:
        """One try; False where a renewal of ours, broken off under way, was stored meanwhile."""
        lease = await self._cluster.get(LEASE, self._key)
        if (lease.get("spec") or {}).get("holderIdentity") != self._config.pod_name:
            return True
        spec = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
        try:
            await self._cluster.replace(LEASE, {**lease, "spec": spec})
        except ConflictError:
            return False
        return True

    async def _try_hold(self) -> bool:
        """One round. A server that does not answer is no loss yet: ``hold`` counts the time."""
        try:
            lease = await self._cluster.get(LEASE, self._key)
        except NotFoundError:
            return await self._write(self._cluster.create, {})
        except ClusterError as error:
            log.warning("the Lease cannot be read", error=str(error))
            return False
        self.is_checked = True
        holder = (lease.get("spec") or {}).get("holderIdentity") or ""
        if holder not in ("", self._config.pod_name):
            self.is_held = False
            if not self._has_expired(lease):
                return False
        return await self._write(self._cluster.replace, lease)

    def _has_expired(self, lease: Manifest) -> bool:
        version = str(lease["metadata"].get("resourceVersion", ""))
        if version != self._seen.version:
            self._seen = _Seen(version, self._clock())
        length_s = float(lease["spec"].get("leaseDurationSeconds") or self._config.lease_s)
        return self._clock() - self._seen.at >= length_s

    async def _write(
        self, write: Callable[[Kind, Manifest], Awaitable[Manifest]], lease: Manifest
    ) -> bool:
        try:
            await write(LEASE, self._record(lease))
        except ConflictError:
            return False  # Another candidate was faster; the next round reads who.
        except ClusterError as error:
            log.warning("the Lease cannot be written", error=str(error))
            return False
        self.is_held = self.is_checked = True
        return True

    def _record(self, lease: Manifest) -> Manifest:
        old = lease.get("spec") or {}
        stamp = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_ours = old.get("holderIdentity") == self._config.pod_name
        spec = {
            "holderIdentity": self._config.pod_name,
            "leaseDurationSeconds": max(1, round(self._config.lease_s)),
            "acquireTime": old.get("acquireTime", stamp) if is_ours else stamp,
            "renewTime": stamp,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if is_ours else 1),
        }
        metadata = lease.get("metadata") or {
            "name": self._key.name,
            "namespace": self._key.namespace,
        }
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": metadata,
            "spec": spec,
        }
