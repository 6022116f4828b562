"""Writes projectors with random weights, under 100 KB each and read by libmtmd.

Owns: the shapes and names that libmtmd expects (tools/mtmd/clip.cpp at 0c1e57098). Their rows fit
the text models of ``tiny_models``; what they see means nothing, that it changes with every patch is
what tests need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import gguf
import numpy as np

from support.tiny_model import WIDTH

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

IMAGE, PATCH = 32, 8
ROWS = (IMAGE // PATCH) ** 2
_GRID = [(row, column) for row in (1, 2) for column in (1, 2)]
IDEFICS3_MARKS = (
    "\n\n",
    "<fake_token_around_image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row, column in _GRID),
)
"""Control tokens that a text model beside ``idefics3`` needs."""
_WIDTH, _HEADS, _FEED_FORWARD, _LAYERS = 32, 2, 64, 2


class _Projector:
    """One GGUF in the making; every number is drawn from the same seed."""

    def __init__(self, path: Path, kind: str, keys: Mapping[str, Any]) -> None:
        self.writer = writer = gguf.GGUFWriter(path, "clip")
        self._numbers = np.random.default_rng(11)
        self.without = ""
        writer.add_type("mmproj")
        writer.add_name(f"tiny {kind}")
        values = {
            "clip.has_vision_encoder": True,
            "clip.projector_type": kind,
            "clip.use_gelu": True,
            "clip.vision.image_size": IMAGE,
            "clip.vision.patch_size": PATCH,
            "clip.vision.embedding_length": _WIDTH,
            "clip.vision.feed_forward_length": _FEED_FORWARD,
            "clip.vision.block_count": _LAYERS,
            "clip.vision.attention.head_count": _HEADS,
            "clip.vision.attention.layer_norm_epsilon": 1e-6,
            "clip.vision.projection_dim": WIDTH,
            "clip.vision.image_mean": [0.5, 0.5, 0.5],
            "clip.vision.image_std": [0.5, 0.5, 0.5],
            **keys,
        }
        for key, value in values.items():
            _add(writer, key, value)

    def matrix(self, name: str, *shape: int, scale: float = 1.0) -> None:
        self.tensor(f"{name}.weight", *shape, scale=scale)

    def tensor(self, name: str, *shape: int, scale: float = 1.0) -> None:
        columns = int(np.prod(shape[1:]))
        weights = self._numbers.standard_normal(shape) * scale * columns**-0.5
        self.add(name, weights)

    def norm(self, name: str) -> None:
        self.add(f"{name}.weight", np.ones(_WIDTH))
        self.add(f"{name}.bias", np.zeros(_WIDTH))

    def add(self, name: str, numbers: NDArray[Any]) -> None:
        if name != self.without:
            self.writer.add_tensor(name, numbers.astype(np.float32))

    def encoder(self, patches: int = ROWS) -> None:
        """A vision transformer; ``patches`` are those that it has positions for."""
        self.matrix("v.patch_embd", _WIDTH, 3, PATCH, PATCH)
        self.matrix("v.position_embd", patches, _WIDTH, scale=3.0)
        for layer in range(_LAYERS):
            at = f"v.blk.{layer}."
            self.norm(f"{at}ln1")
            self.norm(f"{at}ln2")
            for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
                self.matrix(f"{at}{part}", _WIDTH, _WIDTH)
            self.matrix(f"{at}ffn_up", _FEED_FORWARD, _WIDTH)
            self.matrix(f"{at}ffn_down", _WIDTH, _FEED_FORWARD)
        self.norm("v.post_ln")

    def write(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def llava(
    path: Path,
    width: int = WIDTH,
    *,
    patches: int = ROWS,
    kind: str = "mlp",
    keys: Mapping[str, Any] | None = None,
    without: str = "",
) -> Path:
    """Causal rows, one per patch, nothing around them; ``width`` is that of the text model."""
    projector = _Projector(path, kind, keys or {})
    projector.without = without
    projector.encoder(patches)
    for index, columns in ((0, _WIDTH), (2, width)):
        projector.matrix(f"mm.{index}", width, columns, scale=4.0)
        projector.add(f"mm.{index}.bias", np.zeros(width))
    projector.write()
    return path


def sliced(path: Path, side: int = 2) -> Path:
    """As ``llava``, and images are cut into up to ``side`` x ``side`` pieces after an overview."""
    grid = [x for wide in range(1, side + 1) for high in range(1, side + 1) for x in (wide, high)]
    return llava(path, keys={"clip.vision.image_grid_pinpoints": [IMAGE * one for one in grid[2:]]})


def gemma3(path: Path, width: int = WIDTH, *, image: int = IMAGE, merge: int = 2) -> Path:
    """Rows that attend to each other, between marks that are text to a tiny vocabulary."""
    keys = {"clip.vision.projector.scale_factor": merge, "clip.vision.image_size": image}
    projector = _Projector(path, "gemma3", keys)
    projector.encoder((image // PATCH) ** 2)
    projector.matrix("mm.input_projection", _WIDTH, width, scale=4.0)
    projector.add("mm.soft_emb_norm.weight", np.ones(_WIDTH))
    projector.write()
    return path


def idefics3(path: Path) -> Path:
    """Causal rows of up to 2 x 2 pieces and an overview, between IDEFICS3_MARKS; as SmolVLM."""
    keys = {"clip.vision.projector.scale_factor": 2, "clip.vision.preproc_image_size": 2 * IMAGE}
    projector = _Projector(path, "idefics3", keys)
    projector.encoder()
    projector.matrix("mm.model.fc", WIDTH, 4 * _WIDTH, scale=4.0)
    projector.write()
    return path


def qwen2vl(path: Path) -> Path:
    """Causal rows in a grid (M-RoPE), four patches each, as many as the image's shape takes."""
    projector = _Projector(path, "qwen2vl_merger", _GRID_KEYS)
    _grid_encoder(projector)
    _merger(projector, "mm", (0, 2))
    projector.write()
    return path


def qwen25vl(path: Path) -> Path:
    """The same; all layers but the last attend within windows."""
    keys = {**_GRID_KEYS, "clip.vision.n_wa_pattern": _LAYERS}
    projector = _Projector(path, "qwen2.5vl_merger", keys)
    _grid_encoder(projector)
    _merger(projector, "mm", (0, 2))
    projector.write()
    return path


def qwen3vl(path: Path) -> Path:
    """The same for a model that reads rows twice as wide: the first layer's go along."""
    projector = _Projector(path, "qwen3vl_merger", _GRID_KEYS)
    _grid_encoder(projector, is_joint=True)
    projector.add("v.patch_embd.bias", np.zeros(_WIDTH))
    projector.matrix("v.position_embd", ROWS, _WIDTH, scale=3.0)
    projector.add("v.deepstack.0.norm.weight", np.ones(4 * _WIDTH))
    projector.add("v.deepstack.0.norm.bias", np.zeros(4 * _WIDTH))
    _merger(projector, "v.deepstack.0", ("fc1", "fc2"))
    _merger(projector, "mm", (0, 2))
    projector.write()
    return path


def glm4v(path: Path) -> Path:
    """Causal rows in a grid after a convolution over four patches."""
    projector = _Projector(path, "glm4v", _GRID_KEYS)
    _grid_encoder(projector, is_joint=True)
    projector.add("v.patch_embd.bias", np.zeros(_WIDTH))
    projector.matrix("v.position_embd", ROWS, _WIDTH, scale=3.0)
    for layer in range(_LAYERS):
        projector.matrix(f"v.blk.{layer}.ffn_gate", _FEED_FORWARD, _WIDTH)
    projector.matrix("mm.patch_merger", WIDTH, _WIDTH, 2, 2, scale=4.0)
    projector.add("mm.patch_merger.bias", np.zeros(WIDTH))
    projector.matrix("mm.model.fc", WIDTH, WIDTH)
    projector.add("mm.post_norm.weight", np.ones(WIDTH))
    projector.add("mm.post_norm.bias", np.zeros(WIDTH))
    projector.matrix("mm.up", _FEED_FORWARD, WIDTH)
    projector.matrix("mm.gate", _FEED_FORWARD, WIDTH)
    projector.matrix("mm.down", WIDTH, _FEED_FORWARD, scale=4.0)
    projector.write()
    return path


def paddleocr(path: Path) -> Path:
    """Causal rows in a grid, of one frame; the header says how large an image may be."""
    pixels = {"clip.vision.image_min_pixels": 1024, "clip.vision.image_max_pixels": 96 * 96}
    projector = _Projector(path, "paddleocr", _GRID_KEYS | pixels)
    projector.encoder()
    projector.add("mm.input_norm.weight", np.ones(_WIDTH))
    projector.add("mm.input_norm.bias", np.zeros(_WIDTH))
    _merger(projector, "mm", (1, 2))
    projector.write()
    return path


_GRID_KEYS: Final[dict[str, Any]] = {"clip.vision.spatial_merge_size": 2}


def _grid_encoder(projector: _Projector, *, is_joint: bool = False) -> None:
    """One without positions of its own, which sees two frames; ``is_joint``: one matrix for QKV."""
    for name in ("v.patch_embd.weight", "v.patch_embd.weight.1"):
        projector.tensor(name, _WIDTH, 3, PATCH, PATCH)
    for layer in range(_LAYERS):
        at = f"v.blk.{layer}."
        projector.norm(f"{at}ln1")
        projector.norm(f"{at}ln2")
        parts = {"attn_qkv": 3} if is_joint else {"attn_q": 1, "attn_k": 1, "attn_v": 1}
        for part, count in (parts | {"attn_out": 1}).items():
            projector.matrix(f"{at}{part}", count * _WIDTH, _WIDTH, scale=2.0)
            projector.add(f"{at}{part}.bias", np.zeros(count * _WIDTH))
        projector.matrix(f"{at}ffn_up", _FEED_FORWARD, _WIDTH)
        projector.matrix(f"{at}ffn_down", _WIDTH, _FEED_FORWARD)
    projector.norm("v.post_ln")


def _merger(projector: _Projector, at: str, parts: tuple[object, object]) -> None:
    """Four patches to one row."""
    for part, rows in zip(parts, (4 * _WIDTH, WIDTH), strict=True):
        projector.matrix(f"{at}.{part}", rows, 4 * _WIDTH, scale=2.0)
        projector.add(f"{at}.{part}.bias", np.zeros(rows))


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
