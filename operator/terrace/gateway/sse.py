"""Cuts a byte stream of server-sent events at event boundaries.

Owns: holding back a half event until it is whole, so that an error event of ours can follow at any
moment without being glued to half an event of the replica. Does not own: what events mean. Pure.
Bytes come out as they went in; only their grouping changes.
"""

from __future__ import annotations

MAX_HELD_BYTES = 64 * 1024
"""A longer event passes in pieces: memory is bounded before neatness is kept."""


class EventCutter:
    """Feed chunks, get back what ends at a boundary; ``rest`` gives what is left at the end."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes up to the last boundary seen, which may be none."""
        if not self._held and chunk.endswith(b"\n\n"):
            return chunk
        data = self._held + chunk
        end = max(_end_of_last(data, b"\n\n"), _end_of_last(data, b"\r\n\r\n"))
        if len(data) - end > MAX_HELD_BYTES:
            end = len(data)
        self._held = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        """What was held back: a stream that ends well passes it on, one that broke drops it."""
        held, self._held = self._held, b""
        return held


def _end_of_last(data: bytes, boundary: bytes) -> int:
    start = data.rfind(boundary)
    return 0 if start < 0 else start + len(boundary)
