"""From tokens to text, piece by piece: whole characters only, stop strings never shown.

Owns: incremental UTF-8 and the hold-back of what may become a stop string. Does not own: when a
generation ends for other reasons (``sequence.py``). Pure. Next: ``core.py`` puts texts in outputs.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_Decoder = codecs.getincrementaldecoder("utf-8")


class PieceTable:
    """Texts of all tokens, made once per model."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        """``pieces`` holds the bytes of every token by id."""
        self.pieces = pieces
        self.texts: list[str | None] = [_whole(piece) for piece in pieces]
        """Text of a token that is UTF-8 by itself, else None."""
        self.longest = max([1, *map(len, pieces)])
        """Bytes of the longest token."""


def _whole(piece: bytes) -> str | None:
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return None


class Detokenizer:
    """Text increments of one generation; joined they are the whole decode up to the stop string."""

    __slots__ = ("_decoder", "_held", "_longest", "_pending", "_stops", "_table", "stopped")

    def __init__(self, table: PieceTable, stops: Sequence[str] = ()) -> None:
        """``stops`` end the text before their first appearance."""
        self._table = table
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._decoder = _Decoder("replace")
        self._pending = False
        self._held = ""
        self.stopped = False
        """A stop string was found; what came after it is dropped."""

    def add(self, token: int) -> str:
        """Text that is certain after ``token``; empty while a character or a stop is incomplete."""
        text = None if self._pending else self._table.texts[token]
        if text is None:
            text = self._decoder.decode(self._table.pieces[token])
            self._pending = bool(self._decoder.getstate()[0])
        if not self._stops:
            return text
        return self._release(text)

    def finish(self) -> str:
        """What was held back; incomplete bytes become U+FFFD. Call once, at the end."""
        tail = self._decoder.decode(b"", True)
        self._pending = False
        text = self._release(tail) if self._stops else tail
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        held = self._held + text
        found = [place for place in (held.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return held[: min(found)]
        keep = self._overlap(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def _overlap(self, text: str) -> int:
        """Length of the longest end of ``text`` with which a stop string may begin."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
