"""Images as rows of input embeddings: the port to whatever turns pixels into what a model reads.

Owns: the values and protocols. Does not own: decoding files into pixels (``api``), where an image
goes in a prompt (``engine``), evaluating the rows (``Backend.decode_embeddings``).
Next: ``mtmd.py`` is the real one, ``fake_projector.py`` a deterministic one for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_SIDE: Final = 16_384
"""Most pixels of an image's width and of its height; its decoder holds a stricter bound."""


class ProjectorError(ValueError):
    """An image that the projector cannot use; the message says why, as words for a client."""


class Grid(NamedTuple):
    """How the rows of an image piece stand, line by line, for models that look at both sides."""

    columns: int
    lines: int


@dataclass(frozen=True, slots=True)
class MediaChunk:
    """One piece of what an image becomes: tokens around image pieces, or the rows of one piece."""

    tokens: tuple[int, ...] = ()
    """Text: marks of the model's family for begin, end, rows and columns. Empty for a piece."""
    rows: int = 0
    """An image piece: rows of embeddings. 0 for text."""
    is_causal: bool = True
    """False: the rows attend to each other, so all of them go into one graph evaluation."""
    grid: Grid | None = None
    """Where rows have positions in two dimensions (M-RoPE); None: one after the other, as text."""


class Prepared(Protocol):
    """One image scaled and cut as the model wants it; holds its pixels until it is closed."""

    @property
    def chunks(self) -> tuple[MediaChunk, ...]:
        """What stands in the prompt in the image's place, in order; at least one has rows."""

    def close(self) -> None:
        """Free the pixels; safe to call twice, and done by the collector too."""


class Projector(Protocol):
    """A loaded projector. Safe to use from several threads, beside the one that decodes."""

    @property
    def name(self) -> str:
        """Its type as the file's header says it: ``idefics3``, ``gemma3``, ``mlp``."""

    @property
    def width(self) -> int:
        """Numbers of one row; what the model takes as an input embedding."""

    @property
    def weight_bytes(self) -> int | None:
        """Memory of its tensors; None where the backend does not tell."""

    @property
    def compute_bytes(self) -> int | None:
        """Memory reserved for its graph at load; None where the backend does not tell.

        Families that take images as large as they come grow it with the largest one.
        """

    def prepare(self, rgb: bytes, width: int, height: int) -> Prepared:
        """Scale and cut ``width`` x ``height`` pixels (3 bytes each, row by row); milliseconds.

        Raises ProjectorError for an image that cannot be used.
        """

    def encode(self, prepared: Prepared, index: int) -> NDArray[np.float32]:
        """(rows, width) embeddings of image piece ``index`` of ``prepared.chunks``; seconds.

        One at a time: a second caller waits. The array is the caller's. Raises ProjectorError where
        this image cannot be encoded, and BackendError for a piece that is none or is closed.
        """

    def close(self) -> None:
        """Free it, after every ``encode`` returned; safe to call twice."""


class EmbeddingInput(Protocol):
    """The part of the Backend port that takes rows of embeddings in the place of tokens."""

    @property
    def projector(self) -> Projector | None:
        """The model's projector; None unless RuntimeConfig.projector_path names one."""

    def decode_embeddings(
        self,
        slot: int,
        position: int,
        rows: NDArray[np.float32],
        *,
        is_causal: bool,
        wants_logits: bool,
        grid: Grid | None = None,
        first: int = 0,
    ) -> int:
        """Evaluate (count, projector.width) ``rows`` of one sequence from token ``position`` on.

        They are those from ``first`` on of a piece with this ``grid``.

        Returns what ``Backend.decode`` does. Causal rows may come in several calls, at most
        RuntimeConfig.batch_tokens each; others come all at once, and a projector whose images need
        more than RuntimeConfig.ubatch_tokens of those does not load. ``batch`` is empty afterwards;
        ``wants_logits`` are those of the last row: ``logits()[0]``, and batch row ``count - 1`` for
        samplers. Raises BackendError for rows that must not reach llama.cpp, which would abort.
        """


def check_image(rgb: bytes, width: int, height: int) -> None:
    """Refuse what is no image of this size; raises ProjectorError."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ProjectorError(f"it has {width} x {height} pixels, each side may have {MAX_SIDE}")
    if len(rgb) != width * height * 3:
        raise ProjectorError(
            f"{width} x {height} pixels need {width * height * 3} bytes, not {len(rgb)}"
        )
