"""Encodes image pieces on a thread of its own, one at a time.

Owns: the thread, and the one image that is scaled and cut at a time. Does not own: which piece is
next (``image_stage.py``), the projector (``backend``). An encoding takes seconds on a CPU, and the
engine goes on stepping meanwhile. Next: ``image_stage.py`` collects the rows.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol

from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from terrace_runtime.backend.projector import Prepared, Projector
    from terrace_runtime.engine.request import ImagePart

_LOG = logging.getLogger(__name__)
_IDLE_S = 2.0
"""After a job the scaled image is kept for so long, for its other pieces."""


@dataclass(frozen=True, slots=True)
class EncodeJob:
    """One piece to encode."""

    key: bytes
    image: ImagePart
    chunk: int
    rows: int
    """How many are expected."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What came of a job."""

    job: EncodeJob
    seconds: float
    rows: NDArray[np.float32] | None = None
    error: str = ""
    """Why there are no rows."""


class ImageEncoder(Protocol):
    """Takes a job when it has none."""

    def start(self, job: EncodeJob) -> None:
        """Begin; the job before was collected."""

    def collect(self) -> Encoded | None:
        """What came of the job, once; None while there is nothing new."""

    def close(self) -> None:
        """Wait for the job under way and end; safe to call twice."""


class EncodingThread(ImageEncoder):
    """See the module."""

    def __init__(self, projector: Projector, on_done: Callable[[], None]) -> None:
        """``on_done`` is called on the thread after every job."""
        self._encode = PieceEncoder(projector)
        self._on_done = on_done
        self._jobs: SimpleQueue[EncodeJob | None] = SimpleQueue()
        self._done: SimpleQueue[Encoded] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="image encoder", daemon=True)
        self._thread.start()

    @override
    def start(self, job: EncodeJob) -> None:
        self._jobs.put(job)

    @override
    def collect(self) -> Encoded | None:
        with suppress(Empty):
            return self._done.get_nowait()
        return None

    @override
    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._done.put(self._encode(job))
            self._on_done()
        self._encode.close()

    def _next(self) -> EncodeJob | None:
        with suppress(Empty):
            return self._jobs.get(timeout=_IDLE_S)
        # Nobody sends images: the last one's scaled pixels are worth tens of megabytes.
        self._encode.close()
        return self._jobs.get()


class PieceEncoder:
    """Encodes a job; keeps the image that it scaled last, for its other pieces come next."""

    def __init__(self, projector: Projector, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` gives seconds."""
        self._projector = projector
        self._clock = clock
        self._image: ImagePart | None = None
        self._prepared: Prepared | None = None

    def __call__(self, job: EncodeJob) -> Encoded:
        """Rows or why there are none; never raises."""
        started = self._clock()
        try:
            rows = self._projector.encode(self._prepare(job.image), job.chunk)
            if len(rows) != job.rows:
                why = f"{len(rows)} rows came, {job.rows} were planned"
                return Encoded(job, self._clock() - started, error=why)
        except Exception as error:  # noqa: BLE001 - a request must end, whatever it is
            _LOG.exception("encoding an image failed")
            return Encoded(job, self._clock() - started, error=str(error) or type(error).__name__)
        return Encoded(job, self._clock() - started, rows)

    def close(self) -> None:
        """Free the image; safe to call twice."""
        prepared, self._prepared, self._image = self._prepared, None, None
        if prepared is not None:
            prepared.close()

    def _prepare(self, image: ImagePart) -> Prepared:
        if self._prepared is None or self._image is not image:
            self.close()
            self._prepared = self._projector.prepare(image.rgb, image.width, image.height)
            self._image = image
        return self._prepared
