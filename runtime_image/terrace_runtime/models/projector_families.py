"""The kinds of projectors that Terrace takes, and what their headers leave unsaid. Data alone.

Owns: the table, after ``tools/mtmd/clip.cpp`` of llama.cpp 0c1e570 (``load_hparams``,
``clip_n_mmproj_embd``). Next: ``projector``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from terrace_runtime.models.metadata import names_of


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of projector. Keys are named without ``clip.vision.``."""

    outputs: tuple[tuple[str, int], ...]
    """Tensors that make the rows, and which dimension of one is a row's width; the first found."""
    merge_key: str = ""
    """How many patches a side become one row; ``merge`` where the key is absent."""
    merge: int = 1
    most_rows: int = 0
    """Pieces have any shape with up to so many rows; 0: a piece is a square of image_size."""
    longest_key: str = ""
    """Pieces have any shape with sides up to this."""
    has_most_pixels: bool = False
    """Pieces have any shape with up to image_max_pixels."""
    takes_larger_patches: bool = False
    """Patches are joined before they are encoded, not after."""
    aligns_slices: bool = False
    """Pieces have the area of a square of image_size, each side rounded to whole patches."""
    causal_widths: frozenset[int] | None = None
    """Widths of rows that are evaluated as text is; None: all are. Others attend to each other."""
    most_pieces: int = 1
    tiles_key: str = ""
    """Most pieces without the overview; ``most_pieces`` where the key is absent."""
    tiles_longest_key: str = ""
    """Images are cut into squares of image_size, after their longer side was scaled to this."""
    has_grid: bool = False
    """image_grid_pinpoints says into which grids an image may be cut."""
    is_placed: bool = False
    """Rows have positions in two dimensions (M-RoPE); ``most_rows`` is our bound, not libmtmd's.

    libmtmd joins two patches a side of them, whatever the header says."""
    stack: tuple[str, str] = ("", "")
    """Begin and end of the names of tensors that each make a row wider by its width."""


_MM_2 = (("mm.2.weight", 1),)
_INPUT_PROJECTION = "mm.input_projection.weight"
_FC = (("mm.model.fc.weight", 1),)
PLACED_ROWS: Final = 46**2
"""libmtmd reserves the graph of so many rows; larger images are scaled to fit."""
_QWEN_VL: Final = Family((("mm.2.bias", 0),), merge=2, most_rows=PLACED_ROWS, is_placed=True)

FAMILIES: Final[dict[str, Family]] = {
    # LLaVA 1.5 and 1.6, MobileVLM, GLM-Edge.
    "mlp": Family((("mm.3.bias", 0), *_MM_2, ("mm.0.weight", 1)), has_grid=True),
    "ldp": Family((("mm.model.mb_block.1.block.2.1.bias", 0),), has_grid=True),
    "ldpv2": Family((("mm.model.peg.0.bias", 0),), has_grid=True),
    "adapter": Family((("adapter.linear.dense_4h_to_h.weight", 1),), has_grid=True),
    # MiniCPM-V.
    "resampler": Family((("resampler.proj.weight", 0),), aligns_slices=True, most_pieces=10),
    "minicpmv4_6": Family((("mm.down.weight", 1),), aligns_slices=True, most_pieces=10),
    "gemma3": Family(
        ((_INPUT_PROJECTION, 0),),
        merge_key="projector.scale_factor",
        merge=4,
        causal_widths=frozenset(),
    ),
    "gemma4v": Family(
        ((_INPUT_PROJECTION, 1),),
        merge_key="projector.scale_factor",
        merge=3,
        most_rows=1120,
        causal_widths=frozenset({1536, 2560}),
    ),
    "gemma4uv": Family(
        ((_INPUT_PROJECTION, 1),),
        merge_key="projector.scale_factor",
        merge=3,
        most_rows=1120,
        takes_larger_patches=True,
        causal_widths=frozenset(),
    ),
    # SmolVLM and Idefics 3.
    "idefics3": Family(
        _FC, merge_key="projector.scale_factor", tiles_longest_key="preproc_image_size"
    ),
    "internvl": Family(
        (("mm.model.mlp.3.weight", 1),),
        merge_key="projector.scale_factor",
        tiles_key="preproc_max_tiles",
        most_pieces=13,
    ),
    "llama4": Family(_FC, merge_key="projector.scale_factor", most_pieces=17),
    "pixtral": Family(_MM_2, merge_key="spatial_merge_size", most_rows=1024),
    "lightonocr": Family(_MM_2, longest_key="preproc_image_size"),
    "lfm2": Family(_MM_2, merge_key="projector.scale_factor", most_rows=256, most_pieces=11),
    "kimivl": Family(_MM_2, merge_key="projector.scale_factor", most_rows=1024),
    "phi4": Family(_MM_2, has_most_pixels=True),
    "qwen2vl_merger": _QWEN_VL,
    "qwen2.5vl_merger": _QWEN_VL,
    # Qwen3-VL and Qwen3.5.
    "qwen3vl_merger": replace(_QWEN_VL, stack=("v.deepstack.", ".fc2.bias")),
    # GLM-4.1V to GLM-4.6V.
    "glm4v": replace(_QWEN_VL, outputs=(("mm.down.weight", 1),)),
    "paddleocr": Family(_MM_2, merge=2, has_most_pixels=True, is_placed=True),
}
OTHER_PLACED: Final = names_of("qwen2.5o ling3vl glm5v hunyuanvl dots3note_v mimovl")
"""Others whose rows have such positions: not tried, or placed in another way."""
