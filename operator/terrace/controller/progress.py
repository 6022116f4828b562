"""The progress channel: the last log line of a fetch pod, read at a bounded rate.

Owns: when a log is read again. Does not own: what the line means (``facts.py``). A log that
cannot be read is no progress and no error.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
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
STALL_S = 30.0
"""Seconds without a byte after which a download is called stalled."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one download is."""

    line: FetchProgress
    still_s: float = 0.0
    """Seconds since it last got on, as far as this operator has seen."""

    @property
    def is_stalled(self) -> bool:
        """Whether it stands still, and not just between two parts."""
        return self.still_s >= STALL_S


@dataclass(frozen=True, slots=True)
class _Reading:
    read_at: float
    moved_at: float
    line: FetchProgress | None


class ProgressReader:
    """Remembers the last line of each running download."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float], interval_s: float) -> None:
        self._cluster = cluster
        self._clock = clock
        self._interval_s = interval_s
        self._last: OrderedDict[str, _Reading] = OrderedDict()

    @property
    def interval_s(self) -> float:
        """Seconds between two reads of one pod; longer when many models are fetched at once."""
        now = self._clock()
        active = sum(now - last.read_at < 2 * self._interval_s for last in self._last.values())
        return max(self._interval_s, active / MAX_READS_PER_S)

    async def read(self, pod: Manifest) -> Progress | None:
        """The newest progress, from memory when it was read a moment ago."""
        uid, now = uid_of(pod), self._clock()
        last = self._last.get(uid)
        if last is None or now - last.read_at >= self.interval_s:
            last = _after(last, await self._last_line(pod), now)
            self._last[uid] = last
            self._last.move_to_end(uid)
            while len(self._last) > MAX_REMEMBERED:
                self._last.popitem(last=False)
        return Progress(last.line, now - last.moved_at) if last.line else None

    async def _last_line(self, pod: Manifest) -> FetchProgress | None:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                log = await self._cluster.read_log(key_of(pod), FETCH_CONTAINER, MAX_LINE_BYTES)
        except (ClusterError, TimeoutError):
            return None
        return parse_progress(log)


def _after(last: _Reading | None, line: FetchProgress | None, now: float) -> _Reading:
    if last is None or last.line is None:
        return _Reading(now, now, line)
    if line is None or (line.stage, line.done_bytes) == (last.line.stage, last.line.done_bytes):
        return _Reading(now, last.moved_at, line or last.line)
    return _Reading(now, now, line)
