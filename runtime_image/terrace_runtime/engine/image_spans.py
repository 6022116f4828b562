"""Where images stand in a sequence of tokens, and the numbers that stand for their rows. Pure.

Owns: the spans of a prompt's image pieces, how far a sequence is with them, pseudo tokens, and
where a prefix may end. Does not own: pixels and rows (``image_stage.py``) or block keys
(``kv/keys.py``), which treat pseudo tokens as any others: equal images give equal keys, different
ones never.

A pseudo token is 30 bits of a hash beyond any vocabulary. A prefix never ends inside a piece, so
all rows of a piece are compared or none, and a piece of 9 rows has more bits than the hash.
Next: ``image_intake.py`` makes spans, ``sequence.py`` holds them.
"""

from __future__ import annotations

from bisect import bisect_right
from hashlib import sha256, shake_256
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as Seq

    from numpy.typing import NDArray

    from terrace_runtime.backend.projector import Grid
    from terrace_runtime.engine.request import ImagePart

FIRST_PSEUDO_TOKEN = 1 << 30


class ImageSpan(NamedTuple):
    """One piece of an image: tokens ``start`` to ``stop`` - 1, a row of embeddings each."""

    start: int
    stop: int
    key: bytes
    """What its rows are found by: the pixels, the projector and which piece this is."""
    image: int
    """Index among the request's images."""
    chunk: int
    """Index among the chunks that the projector makes of the image."""
    is_causal: bool = True
    """False: all rows are evaluated at once, for they attend to each other."""
    grid: Grid | None = None
    """How they stand, where the model has positions in two dimensions; the backend's business."""


def image_digest(image: ImagePart, projector_digest: str) -> bytes:
    """What an image's rows depend on, besides the model."""
    hasher = sha256(f"{projector_digest} {image.width} {image.height} ".encode())
    hasher.update(image.rgb)
    return hasher.digest()


def piece_key(digest: bytes, chunk: int) -> bytes:
    """Name of one piece's rows."""
    return sha256(digest + chunk.to_bytes(4, "little")).digest()


def pseudo_tokens(key: bytes, count: int) -> list[int]:
    """``count`` numbers from FIRST_PSEUDO_TOKEN on, below 2**31, that stand for a piece's rows."""
    numbers = np.frombuffer(shake_256(key).digest(4 * count), "<u4")
    found: list[int] = (numbers & (FIRST_PSEUDO_TOKEN - 1) | FIRST_PSEUDO_TOKEN).tolist()
    return found


def spans_from(spans: Seq[ImageSpan], position: int) -> Seq[ImageSpan]:
    """The pieces that do not end before or at ``position``; spans ascend."""
    return spans[bisect_right(spans, position, key=attrgetter("stop")) :]


def span_from(spans: Seq[ImageSpan], position: int) -> ImageSpan | None:
    """The first of them."""
    index = bisect_right(spans, position, key=attrgetter("stop"))
    return spans[index] if index < len(spans) else None


def whole(spans: Seq[ImageSpan], count: int) -> int:
    """The longest prefix of at most ``count`` tokens that does not end inside a piece."""
    span = span_from(spans, count)
    return span.start if span is not None and span.start < count else count


def whole_blocks(spans: Seq[ImageSpan], count: int, block_tokens: int) -> int:
    """The same of prefixes that are whole blocks."""
    while True:
        found = whole(spans, count) // block_tokens * block_tokens
        if found == count:
            return found
        count = found


def without_images(tokens: Seq[int], spans: Iterable[ImageSpan]) -> list[int]:
    """The tokens between the pieces."""
    found: list[int] = []
    start = 0
    for span in spans:
        found += tokens[start : span.start]
        start = span.stop
    return found + list(tokens[start:])


class SequenceImages:
    """The pieces of one sequence, and how far it is with them."""

    __slots__ = ("awaits_rows", "has_begun", "num_expected", "rows", "rows_key", "spans")

    def __init__(self, spans: Seq[ImageSpan]) -> None:
        """``spans`` ascend."""
        self.spans = spans
        self.num_expected = 0
        """First tokens that a tier had when it was queued: their pieces need no rows."""
        self.rows: NDArray[np.float32] | None = None
        """Rows of the piece that it has come to."""
        self.rows_key = b""
        """Of which piece they are."""
        self.awaits_rows = False
        """It has come to a piece whose rows are not there."""
        self.has_begun = False
        """It ran, so it was counted how many of its pieces were found."""

    def following(self, position: int) -> ImageSpan | None:
        """The first piece that does not end before or at ``position``."""
        return span_from(self.spans, position) if self.spans else None

    def let_go(self) -> None:
        """It is at no piece."""
        self.rows, self.awaits_rows = None, False
