"""The progress channel: the last log line of a fetch pod, read at a bounded rate.

Owns: when a log is read again. Does not own: what the line means (``facts.py``). A log that
cannot be read is no progress and no error.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from terrace.controller.facts import parse_progress
from terrace.controller.kinds import Manifest, key_of, uid_of
from terrace.controller.port import Cluster, ClusterError
from terrace_runtime.contract import FETCH_CONTAINER, FetchProgress

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_LINE_BYTES = 2048
MAX_READS_PER_S = 5.0
MAX_REMEMBERED = 1024
READ_TIMEOUT_S = 5.0


class ProgressReader:
    """Remembers the last line of each running download."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float], interval_s: float) -> None:
        self._cluster = cluster
        self._clock = clock
        self._interval_s = interval_s
        self._last: OrderedDict[str, tuple[float, FetchProgress | None]] = OrderedDict()

    @property
    def interval_s(self) -> float:
        """Seconds between two reads of one pod; longer when many models are fetched at once."""
        now = self._clock()
        active = sum(now - at < 2 * self._interval_s for at, _ in self._last.values())
        return max(self._interval_s, active / MAX_READS_PER_S)

    async def read(self, pod: Manifest) -> FetchProgress | None:
        """The newest progress, from memory when it was read a moment ago."""
        uid, now = uid_of(pod), self._clock()
        at, known = self._last.get(uid, (float("-inf"), None))
        if now - at < self.interval_s:
            return known
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                log = await self._cluster.read_log(key_of(pod), FETCH_CONTAINER, MAX_LINE_BYTES)
        except (ClusterError, TimeoutError):
            log = ""
        progress = parse_progress(log) or known
        self._last[uid] = (now, progress)
        self._last.move_to_end(uid)
        while len(self._last) > MAX_REMEMBERED:
            self._last.popitem(last=False)
        return progress
