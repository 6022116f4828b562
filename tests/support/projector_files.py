"""Builders of multimodal projectors: headers that are whole, with weights that may be a hole.

The shapes are those of published projectors, read from their public configurations: SmolVLM-500M
(SigLIP base, 512 pixels), LLaVA 1.5 (CLIP ViT-L/14, 336 pixels), Gemma 3 (SigLIP-400M, 896),
Qwen2-VL 7B, Qwen2.5-VL 7B and Qwen3-VL 8B.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class ProjectorShape:
    """What decides a projector's size."""

    kind: str = "gemma3"
    image_size: int = 32
    patch_size: int = 4
    width: int = 32
    feed_forward: int = 64
    heads: int = 2
    layers: int = 2
    output: int = 64
    merge: int = 2
    has_class_token: bool = False
    stacked: int = 0
    """Layers whose values stand in a row beside the last one's."""
    keys: dict[str, int] = field(default_factory=dict)
    """More metadata, without ``clip.vision.``."""
    weight_type: str = "F16"

    @property
    def side(self) -> int:
        """Patches of a piece's side."""
        return self.image_size // self.patch_size


TINY = ProjectorShape()
SMOLVLM_500M = ProjectorShape(
    kind="idefics3",
    image_size=512,
    patch_size=16,
    width=768,
    feed_forward=3072,
    heads=12,
    layers=12,
    output=960,
    merge=4,
    keys={"preproc_image_size": 2048},
)
LLAVA_15 = ProjectorShape(
    kind="mlp",
    image_size=336,
    patch_size=14,
    width=1024,
    feed_forward=4096,
    heads=16,
    layers=23,
    output=4096,
    merge=1,
    has_class_token=True,
)
GEMMA_3_4B = ProjectorShape(
    kind="gemma3",
    image_size=896,
    patch_size=14,
    width=1152,
    feed_forward=4304,
    heads=16,
    layers=27,
    output=2560,
    merge=4,
)


QWEN2_VL_7B = ProjectorShape(
    kind="qwen2vl_merger",
    image_size=560,
    patch_size=14,
    width=1280,
    feed_forward=5120,
    heads=16,
    layers=32,
    output=3584,
)
QWEN25_VL_7B = replace(
    QWEN2_VL_7B, kind="qwen2.5vl_merger", feed_forward=3420, keys={"n_wa_pattern": 8}
)
QWEN3_VL_8B = ProjectorShape(
    kind="qwen3vl_merger",
    image_size=768,
    patch_size=16,
    width=1152,
    feed_forward=4304,
    heads=16,
    layers=27,
    output=4096,
    stacked=3,
)
PLACED = {shape.kind for shape in (QWEN2_VL_7B, QWEN25_VL_7B, QWEN3_VL_8B)}


def projector_file(path: Path, shape: ProjectorShape = TINY, **changes: Any) -> Path:
    """A projector GGUF of zeros; large ones are sparse files. ``changes``: fields of the shape."""
    shape = replace(shape, **changes)
    kind = gguf.GGMLQuantizationType[shape.weight_type]
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name("a projector")
    writer.add_bool("clip.has_vision_encoder", val=True)
    writer.add_string("clip.projector_type", shape.kind)
    writer.add_bool("clip.use_gelu", val=True)
    for key, value in _numbers(shape).items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    names = {
        name: (size, kind if is_matrix else gguf.GGMLQuantizationType.F32)
        for name, size, is_matrix in tensors_of(shape)
    }
    for name, (size, type_) in names.items():
        dtype = np.float32 if type_ == gguf.GGMLQuantizationType.F32 else np.float16
        nbytes = int(np.prod(size)) * np.dtype(dtype).itemsize
        if type_ not in {gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16}:
            elements, block = gguf.GGML_QUANT_SIZES[type_]
            nbytes = int(np.prod(size)) // elements * block
        writer.add_tensor_info(name, size, np.dtype(dtype), nbytes, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    end = writer.fout[0].tell()
    total = sum(
        -(-info.nbytes // writer.data_alignment) * writer.data_alignment
        for info in writer.tensors[0].values()
    )
    writer.close()
    start = -(-end // writer.data_alignment) * writer.data_alignment
    with path.open("r+b") as file:
        file.truncate(start + total)
    return path


def tensors_of(shape: ProjectorShape) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """(name, shape as numpy has it, whether it is a matrix of the weight type)."""
    width, wide = shape.width, shape.feed_forward
    yield "v.patch_embd.weight", (width, 3, shape.patch_size, shape.patch_size), True
    if shape.kind in PLACED:
        yield from _two_frames(shape)
        return
    yield "v.patch_embd.bias", (width,), False
    positions = shape.side**2 + (1 if shape.has_class_token else 0)
    yield "v.position_embd.weight", (positions, width), False
    if shape.has_class_token:
        yield "v.class_embd", (width,), False
        yield "v.pre_ln.weight", (width,), False
        yield "v.pre_ln.bias", (width,), False
    else:
        yield "v.post_ln.weight", (width,), False
        yield "v.post_ln.bias", (width,), False
    for index in range(shape.layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            yield f"v.blk.{index}.{name}.weight", (width, width), True
            yield f"v.blk.{index}.{name}.bias", (width,), False
        for name in ("ln1", "ln2"):
            yield f"v.blk.{index}.{name}.weight", (width,), False
            yield f"v.blk.{index}.{name}.bias", (width,), False
        yield f"v.blk.{index}.ffn_up.weight", (wide, width), True
        yield f"v.blk.{index}.ffn_up.bias", (wide,), False
        yield f"v.blk.{index}.ffn_down.weight", (width, wide), True
        yield f"v.blk.{index}.ffn_down.bias", (width,), False
    yield from _head(shape)


def _two_frames(shape: ProjectorShape) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """The rest of what stands its rows in a grid."""
    width, wide = shape.width, shape.feed_forward
    is_joint = shape.kind == "qwen3vl_merger"
    has_gate = shape.kind == "qwen2.5vl_merger"
    yield "v.patch_embd.weight.1", (width, 3, shape.patch_size, shape.patch_size), True
    if is_joint:
        yield "v.patch_embd.bias", (width,), False
        yield "v.position_embd.weight", (shape.side**2, width), False
    parts = {"attn_qkv": 3} if is_joint else {"attn_q": 1, "attn_k": 1, "attn_v": 1}
    for index in range(shape.layers):
        at = f"v.blk.{index}."
        for name, count in (parts | {"attn_out": 1}).items():
            yield f"{at}{name}.weight", (count * width, width), True
            yield f"{at}{name}.bias", (count * width,), False
        for name in ("ln1", "ln2"):
            yield f"{at}{name}.weight", (width,), False
        for name in ("ffn_up", "ffn_gate")[: 1 + has_gate]:
            yield f"{at}{name}.weight", (wide, width), True
            yield f"{at}{name}.bias", (wide,), False
        yield f"{at}ffn_down.weight", (width, wide), True
        yield f"{at}ffn_down.bias", (width,), False
    yield "v.post_ln.weight", (width,), False
    for index in range(shape.stacked):
        yield f"v.deepstack.{index}.norm.weight", (4 * width,), False
        yield from _merger(f"v.deepstack.{index}.fc1", f"v.deepstack.{index}.fc2", shape)
    yield from _merger("mm.0", "mm.2", shape)


def _merger(
    first: str, second: str, shape: ProjectorShape
) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    joined = 4 * shape.width
    for name, rows in ((first, joined), (second, shape.output)):
        yield f"{name}.weight", (rows, joined), True
        yield f"{name}.bias", (rows,), False


def _head(shape: ProjectorShape) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    if shape.kind == "gemma3":
        yield "mm.soft_emb_norm.weight", (shape.width,), False
        yield "mm.input_projection.weight", (shape.width, shape.output), True
    elif shape.kind == "idefics3":
        yield "mm.model.fc.weight", (shape.output, shape.width * shape.merge**2), True
    else:
        yield "mm.0.weight", (shape.output, shape.width), True
        yield "mm.0.bias", (shape.output,), False
        yield "mm.2.weight", (shape.output, shape.output), True
        yield "mm.2.bias", (shape.output,), False


def _numbers(shape: ProjectorShape) -> dict[str, int]:
    return {
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "embedding_length": shape.width,
        "feed_forward_length": shape.feed_forward,
        "block_count": shape.layers,
        "attention.head_count": shape.heads,
        "projection_dim": shape.output,
        "projector.scale_factor": shape.merge,
        **shape.keys,
    }
