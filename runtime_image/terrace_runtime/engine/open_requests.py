"""The requests of one engine that have not ended: who they are, and who must end now.

Owns: their order of arrival, cancels, deadlines, tenants' shares and the queue of those that have
no slot. Does not own: what runs, or what an end means for slots and cells (``core.py``,
``embedding.py``, which both stand on this). Used by one thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace_runtime.engine.deadlines import Deadlines
from terrace_runtime.engine.request import FinishReason
from terrace_runtime.engine.waiting import TenantShares, WaitingQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from terrace_runtime.engine.sequence import Sequence


class OpenRequests:
    """Requests from ``add`` to ``close``."""

    def __init__(self, clock: Callable[[], float], timeout_s: float) -> None:
        """``clock`` gives seconds; no request may become older than ``timeout_s``."""
        self.shares = TenantShares()
        self.waiting = WaitingQueue(self.shares)
        self._clock = clock
        self._timeout_s = timeout_s
        self._by_id: dict[str, Sequence] = {}
        self._cancelled: list[Sequence] = []
        self._deadlines = Deadlines()
        self._arrivals = 0
        self.news = 0
        """Another number after every arrival and every end."""

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. Its id must not be in use."""
        assert sequence.id not in self._by_id, "request ids are unique while they run"
        sequence.arrival = self._clock()
        sequence.order = self._arrivals
        self._arrivals += 1
        self.news += 1
        self._by_id[sequence.id] = sequence
        own = sequence.request.timeout_s or self._timeout_s
        sequence.deadline = sequence.arrival + min(own, self._timeout_s)
        self._deadlines.add(sequence)
        self.shares.enter(sequence.tenant)
        self.waiting.push(sequence)

    def abort(self, request_id: str) -> None:
        """End a request at the start of the next step; unknown ids are ignored."""
        sequence = self._by_id.get(request_id)
        if sequence is not None and not sequence.is_aborted:
            sequence.is_aborted = True
            self._cancelled.append(sequence)

    def abort_all(self) -> None:
        """End everybody at the start of the next step."""
        for request_id in list(self._by_id):
            self.abort(request_id)

    def due(self, now: float) -> Iterator[tuple[Sequence, FinishReason]]:
        """Whoever was cancelled or is too old; the caller closes each before it asks for more."""
        cancelled, self._cancelled = self._cancelled, []
        for sequence in cancelled:
            if sequence.id in self._by_id:
                yield sequence, FinishReason.ABORT
        for sequence in self._deadlines.passed(now, self._by_id):
            yield sequence, FinishReason.TIMEOUT

    def close(self, sequence: Sequence) -> None:
        """It ended; one that has no slot leaves the queue, where it may have been all the time."""
        self.news += 1
        del self._by_id[sequence.id]
        if sequence.slot is None:
            self.waiting.remove(sequence)
            if not sequence.is_resumed:
                sequence.queued_s = self._clock() - sequence.arrival
        self.shares.leave(sequence.tenant)
