"""What taking images costs a replica in host memory, and which projectors do not fit a model.

Owns: the bytes of a projector's weights, of encoding one image and of the images of requests under
way; the refusals of pairs. Does not own: reading a projector's header (``terrace_runtime.models``),
the bounds of images (``terrace_runtime.contract.images``). Pure. The graph is that of llama.cpp
0c1e570 (``tools/mtmd/clip.cpp``) with flash attention on the CPU, as ``backend/mtmd.py`` opens it.
Next: ``footprint.py`` adds it up, ``reasons.py`` says it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from terrace.api.conditions import Reason
from terrace.planner.room import NoPlacement
from terrace_runtime.contract import HELD_PIXEL_BYTES, IMAGE_ROWS_BYTES, MAX_IMAGE_PIXELS
from terrace_runtime.contract.images import MAX_DECODING, MAX_REQUEST_IMAGE_BYTES

if TYPE_CHECKING:
    from terrace_runtime.contract import ModelFacts, ProjectorFacts

MIB: Final = 1 << 20
FLOAT, HALF = 4, 2
ATTENTION_WIDTHS: Final = 5
"""Vectors of a patch held at once around attention: what goes on, its norm, query, key, value."""
FEED_FORWARD_WIDTHS: Final = 2
"""Beside the feed-forward layer's own: what goes on, and its norm or what comes out."""
HEAD_WIDTHS: Final = 2
"""Rows between the two products that make them, and the rows themselves."""
TURNS_MATRIX: Final = frozenset({"gemma3"})
"""Kinds that turn their last matrix round, in numbers of two bytes, before it is used."""
CHANNELS: Final = 3
ROW_COPIES: Final = 2
"""libmtmd's, and the one that is handed on."""
PREPARED_AT_ONCE: Final = 2
"""Images that are cut into pieces: one to see how many rows it has, one that is encoded."""
PIECE_BYTES_PER_VALUE: Final = FLOAT + 2
"""As a float and, while it is made, as a byte in the scaled image and in its piece."""
OPEN_BYTES: Final = 16 * MIB
"""Graph nodes, names of tensors and libmtmd itself."""
DECODER_BYTES: Final = 32 * MIB
"""The process that decodes images, before the first."""
DECODED_BYTES_PER_PIXEL: Final = 20
"""*Measured* in the process that decodes: 19 for WebP with transparency, 11 for PNG with it, 7 for
PNG without, 2 for JPEG."""
MROPE_ARCHITECTURES: Final = frozenset(
    {"qwen2vl", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "paddleocr"}
)
"""Language models whose image rows have positions in two dimensions."""
MROPE_KINDS: Final = frozenset(
    {"qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger", "glm4v", "paddleocr"}
)
"""Projectors that are made for such models."""
WINDOWED: Final = frozenset({"qwen2.5vl_merger"})
"""Kinds with attention within windows, by a mask of every patch by every patch, and a gate."""
STACKED: Final = frozenset({"qwen3vl_merger"})
"""Kinds whose rows hold values for several of the model's layers; those of one wait for others."""


@dataclass(frozen=True, slots=True)
class ProjectorBytes:
    """Host memory that a replica with a projector takes beside one without."""

    weights: int = 0
    """As they lie in the file: they are read into memory."""
    compute: int = 0
    """Encoding the largest piece of an image, with the pixels of all its pieces."""
    images: int = 0
    """Decoding one image, pixels of requests under way, encoded images that are kept."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.compute + self.images


NO_PROJECTOR: Final = ProjectorBytes()


def projector_bytes(facts: ProjectorFacts) -> ProjectorBytes:
    """Bytes of a projector and of the images it is given; more patches never need less."""
    decoding = DECODER_BYTES + MAX_DECODING * DECODED_BYTES_PER_PIXEL * MAX_IMAGE_PIXELS
    # A request's images as base64 text, as text and as files, while they are read.
    bodies = MAX_REQUEST_IMAGE_BYTES * 3
    return ProjectorBytes(
        weights=facts.weight_bytes,
        compute=OPEN_BYTES + graph_bytes(facts) + work_bytes(facts) + piece_bytes(facts),
        images=decoding + bodies + HELD_PIXEL_BYTES + IMAGE_ROWS_BYTES,
    )


def graph_bytes(facts: ProjectorFacts) -> int:
    """The buffer of the largest piece's graph. *Measured* within 3 % (``make bench-planner``)."""
    width, wide = facts.embedding_length, facts.feed_forward_length
    pixels = CHANNELS * facts.patch_size**2
    is_windowed, is_stacked = _is_of(facts, WINDOWED), _is_of(facts, STACKED)
    inside = FEED_FORWARD_WIDTHS * width + wide * (2 if is_windowed else 1)
    body = facts.max_patches * max(ATTENTION_WIDTHS * width, inside)
    rows = facts.max_rows * facts.output_length
    head = facts.max_patches * width + HEAD_WIDTHS * rows + (rows // 2 if is_stacked else 0)
    turned = HALF * width * facts.output_length if _is_of(facts, TURNS_MATRIX) else 0
    mask = facts.max_patches**2 if is_windowed else 0
    return FLOAT * (max(body, head) + facts.max_patches * pixels + mask) + HALF * mask + turned


def _is_of(facts: ProjectorFacts, kinds: frozenset[str]) -> bool:
    """Whether it is of one of these kinds."""
    return facts.projector_type in kinds


def work_bytes(facts: ProjectorFacts) -> int:
    """What the threads make of the widest product's input, and a mask before it is handed over."""
    pixels = CHANNELS * facts.patch_size**2
    widest = max(facts.feed_forward_length, facts.embedding_length, pixels)
    mask = facts.max_patches**2 if _is_of(facts, WINDOWED) else 0
    return HALF * facts.max_patches * widest + FLOAT * mask


def piece_bytes(facts: ProjectorFacts) -> int:
    """All pieces of an image, scaled and cut, and the rows of one."""
    values = facts.max_pieces * CHANNELS * facts.max_patches * facts.patch_size**2
    rows = FLOAT * ROW_COPIES * facts.max_rows * facts.output_length
    return PREPARED_AT_ONCE * PIECE_BYTES_PER_VALUE * values + rows


def refuse_pair(
    model: ModelFacts, projector: ProjectorFacts, step_tokens: int
) -> NoPlacement | None:
    """Why the two do not work together, with steps of so many tokens; None when they do."""
    if model.model_class != "decoder" or model.pooling:
        why = (
            "this model does not generate from a prompt's positions (it embeds, or is an "
            "encoder-decoder), so it cannot be given images: drop spec.projector"
        )
    elif not _fits_width(model, projector):
        why = (
            f"spec.projector makes rows of {projector.output_length:,} values, the model takes "
            f"{model.embedding_length:,}: it belongs to another model; name the mmproj file of "
            "this one"
        )
    elif model.architecture in MROPE_ARCHITECTURES and projector.projector_type not in MROPE_KINDS:
        why = (
            f"models of the architecture {model.architecture} place images in two dimensions "
            f"(M-RoPE), which spec.projector of the kind {projector.projector_type} was not made "
            "for: name the mmproj file of this model"
        )
    elif projector.rows_at_once > step_tokens:
        why = (
            f"the images of spec.projector have pieces of up to {projector.rows_at_once:,} rows "
            f"that attend to each other, and a step takes {step_tokens:,}: use another model"
        )
    else:
        return None
    return NoPlacement(Reason.INVALID_PROJECTOR, why)


def _fits_width(model: ModelFacts, projector: ProjectorFacts) -> bool:
    """Whether the model can read the rows; how many layers get some, its header alone says."""
    if _is_of(projector, STACKED):
        return projector.output_length % model.embedding_length == 0
    return projector.output_length == model.embedding_length
