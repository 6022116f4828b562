"""Which image pieces are encoded, in which order, and who waits for which rows.

Owns: rows for the sequences that have come to a piece, pieces encoded ahead for those that will,
and the counters. Does not own: the encoding (``image_encoder.py``), the rows' memory
(``image_rows.py``), the step that evaluates rows (``batch_planner.py``, ``evaluation.py``). On the
engine's thread.

Nothing is queued: what is wanted is found anew in every step from the requests that are open, so
that whoever was cancelled wants nothing, and a prompt whose beginning is found in a tier has no
pieces encoded for it. Next: ``core.py`` calls ``advance`` before it plans.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from terrace_runtime.contract import IMAGE_ENCODE_BUCKETS, IMAGE_ROWS_BYTES, ImageReport
from terrace_runtime.engine.image_encoder import EncodeJob
from terrace_runtime.engine.image_rows import ImageRows
from terrace_runtime.engine.image_spans import spans_from
from terrace_runtime.engine.waiting import urgency

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace_runtime.backend import Backend
    from terrace_runtime.engine.image_encoder import Encoded, ImageEncoder
    from terrace_runtime.engine.image_spans import ImageSpan
    from terrace_runtime.engine.sequence import Sequence

_ROW_BYTES = 4


class _Wanted(NamedTuple):
    sequence: Sequence
    span: ImageSpan


class ImageStage:
    """See the module."""

    def __init__(
        self,
        backend: Backend,
        encoder: ImageEncoder | None = None,
        max_bytes: int = IMAGE_ROWS_BYTES,
    ) -> None:
        """Without ``encoder`` no sequence has images, for the model has no projector.

        Rows of about ``max_bytes`` are kept and encoded ahead.
        """
        self._backend = backend
        self._encoder = encoder
        self._max_bytes = max_bytes
        self._rows = ImageRows(max_bytes)
        self._open: dict[str, Sequence] = {}
        self._job: EncodeJob | None = None
        self._unused: set[bytes] = set()
        """Encoded and asked for by nobody yet."""
        self._counts = [0] * (len(IMAGE_ENCODE_BUCKETS) + 1)
        self._seconds = 0.0
        self._num_encoded = self._num_kept = self._num_reused = self._num_failed = 0

    def add(self, sequence: Sequence) -> None:
        """A new sequence is queued."""
        if sequence.images.spans:
            self._open[sequence.id] = sequence

    def forget(self, sequence: Sequence) -> None:
        """It ended."""
        self._open.pop(sequence.id, None)

    def advance(self, now: float) -> list[tuple[Sequence, str]]:
        """Hand out rows, collect what was encoded, begin what is wanted next.

        Gives those whose image cannot be encoded, and why: they must end.
        """
        failed: list[tuple[Sequence, str]] = []
        if self._encoder is None:
            return failed
        encoded = self._encoder.collect() if self._job is not None else None
        if encoded is not None:
            failed = self._take(encoded, now)
        for sequence in self._open.values():
            self._hand_out(sequence)
        if self._job is None and self._open:
            gone = {sequence.id for sequence, _ in failed}
            self._begin(self._encoder, now, gone)
        return failed

    @property
    def report(self) -> ImageReport:
        """Counters since start."""
        return ImageReport(
            encoded=self._num_encoded,
            kept=self._num_kept,
            reused=self._num_reused,
            failed=self._num_failed,
            rows_bytes=self._rows.used_bytes,
            encode_seconds=self._seconds,
            encode_counts=tuple(self._counts),
        )

    def close(self) -> None:
        """End the encoder; safe to call twice."""
        if self._encoder is not None:
            self._encoder.close()

    # The parts of ``advance`` ---------------------------------------------------------------------

    def _take(self, encoded: Encoded, now: float) -> list[tuple[Sequence, str]]:
        self._job, key = None, encoded.job.key
        if encoded.rows is None:
            self._num_failed += 1
            asking = {one.sequence.id: one for one in self._wanted(now) if one.span.key == key}
            return [
                (one.sequence, f"image {one.span.image + 1} cannot be encoded: {encoded.error}")
                for one in asking.values()
            ]
        self._num_encoded += 1
        self._seconds += encoded.seconds
        self._counts[bisect_left(IMAGE_ENCODE_BUCKETS, encoded.seconds)] += 1
        self._rows.put(key, encoded.rows, {one.span.key for one in self._affordable(now)})
        self._unused.add(key)
        return []

    def _hand_out(self, sequence: Sequence) -> None:
        """Give a sequence that has come to a piece its rows, as soon as they are there."""
        images = sequence.images
        if sequence.slot is None or sequence.is_restoring:
            images.let_go()
            return
        if not images.has_begun:
            images.has_begun = True
            self._num_reused += sum(one.stop <= sequence.num_computed for one in images.spans)
        span = sequence.image
        if span is None:
            images.let_go()
            return
        if sequence.num_computed > span.start and not span.is_causal:
            self._cut(sequence, span)
            self._hand_out(sequence)
            return
        if images.rows is None or images.rows_key != span.key:
            images.rows, images.rows_key = self._rows.get(span.key), span.key
            if images.rows is not None:
                self._num_kept += span.key not in self._unused
                self._unused.discard(span.key)
        images.awaits_rows = images.rows is None

    def _cut(self, sequence: Sequence, span: ImageSpan) -> None:
        """A restore came to less than was hoped for, and rows that go together were torn apart."""
        assert sequence.slot is not None
        kept = span.start
        if not self._backend.seq_rm(sequence.slot, kept):
            self._backend.seq_rm(sequence.slot)
            kept = 0
        sequence.num_computed = kept
        sequence.num_cached = min(sequence.num_cached, kept)

    def _begin(self, encoder: ImageEncoder, now: float, gone: set[str]) -> None:
        for sequence, span in self._affordable(now):
            if span.key not in self._rows and sequence.id not in gone:
                image = sequence.request.images[span.image]
                self._job = EncodeJob(span.key, image, span.chunk, span.stop - span.start)
                encoder.start(self._job)
                return

    def _affordable(self, now: float) -> Iterator[_Wanted]:
        """What is wanted, as far as the bytes for rows go; the first in any case."""
        projector = self._backend.projector
        assert projector is not None
        num_bytes = 0
        keys: set[bytes] = set()
        for one in self._wanted(now):
            if one.span.key not in keys:
                num_bytes += (one.span.stop - one.span.start) * projector.width * _ROW_BYTES
                if keys and num_bytes > self._max_bytes:
                    return
            keys.add(one.span.key)
            yield one

    def _wanted(self, now: float) -> Iterator[_Wanted]:
        """Pieces that are yet to be computed: of those that wait at one, that run, that queue."""
        order = sorted(
            (one for one in self._open.values() if one.images.spans[-1].stop > _known(one)),
            key=lambda one: (
                not one.images.awaits_rows,
                one.slot is None,
                urgency(one, now),
                one.order,
            ),
        )
        for sequence in order:
            for span in spans_from(sequence.images.spans, _known(sequence)):
                yield _Wanted(sequence, span)


def _known(sequence: Sequence) -> int:
    """First tokens that are computed, or will be found."""
    is_coming = sequence.slot is None or sequence.is_restoring
    return sequence.images.num_expected if is_coming else sequence.num_computed
