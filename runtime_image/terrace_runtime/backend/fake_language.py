"""What the fake backend says next: bytes of a few words, drawn by a digest of all before them.

Owns: the choice. Does not own: the vocabulary or the cells (``fake.py``).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORDS = tuple("the llama climbs a terrace and tells of pods ñandú 雪 🦙 ".encode())


def next_byte(history: Sequence[int], last: int, end: int, end_odds: int) -> int:
    """A pure function of ``history``; completes a UTF-8 character that ``last`` began.

    One in ``end_odds`` is ``end``.
    """
    digest = crc32(np.asarray(history, np.int32).tobytes())
    followers = [b for a, b in pairwise(_WORDS) if a == last]
    if last > 127 and last < 256 and followers:  # noqa: PLR2004 - the bytes above ASCII
        return followers[digest % len(followers)]
    if digest % end_odds == 0:
        return end
    starts = [b for b in _WORDS if b < 128 or b >= 192]  # noqa: PLR2004 - not continuations
    return starts[(digest >> 8) % len(starts)]
