"""Builders of GGUF files: whole ones by the reference writer, broken ones by hand."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

U32, U64, STR, ARR, BOOL = 4, 10, 8, 9, 7


def model_file(
    path: Path,
    *,
    layers: int = 2,
    architecture: str = "llama",
    embedding: int = 64,
    heads: int = 4,
    kv_heads: int | Sequence[int] = 2,
    vocabulary: int = 48,
    tokens: int | None = None,
    weight_type: str = "Q8_0",
    rows: Sequence[int] = (),
    tied: bool = False,
    keys: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, tuple[int, ...]] | None = None,
) -> Path:
    """A small GGUF; ``rows`` sets the rows of each layer's one feed-forward matrix."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("a model")
    writer.add_block_count(layers)
    writer.add_context_length(2048)
    writer.add_embedding_length(embedding)
    writer.add_feed_forward_length(128)
    writer.add_head_count(heads)
    writer.add_head_count_kv(list(kv_heads) if not isinstance(kv_heads, int) else kv_heads)
    writer.add_token_list([f"t{i}" for i in range(vocabulary if tokens is None else tokens)])
    for key, value in (keys or {}).items():
        _add(writer, key, value)
    _matrix(writer, "token_embd.weight", (vocabulary, embedding), weight_type)
    for index in range(layers):
        ffn_rows = rows[index] if rows else 128
        _matrix(writer, f"blk.{index}.attn_k.weight", (32, embedding), weight_type)
        _matrix(writer, f"blk.{index}.ffn_up.weight", (ffn_rows, embedding), weight_type)
        _matrix(writer, f"blk.{index}.attn_norm.weight", (embedding,), "F32")
    for name, shape in (extra_tensors or {}).items():
        _matrix(writer, name, shape, weight_type)
    _matrix(writer, "output_norm.weight", (embedding,), "F32")
    if not tied:
        _matrix(writer, "output.weight", (vocabulary, embedding), weight_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def matrix_bytes(shape: tuple[int, ...], weight_type: str) -> int:
    """Bytes of a tensor in the file."""
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[weight_type]]
    return int(np.prod(shape)) // int(elements) * int(size)


def _matrix(writer: Any, name: str, shape: tuple[int, ...], weight_type: str) -> None:
    kind = gguf.GGMLQuantizationType[weight_type]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    if weight_type == "F32":
        writer.add_tensor(name, np.zeros(shape, np.float32))
    else:
        raw = np.zeros((*shape[:-1], shape[-1] // elements * size), np.uint8)
        writer.add_tensor(name, raw, raw_dtype=kind)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def text(value: bytes | str) -> bytes:
    """A GGUF string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    """A metadata pair."""
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    """A metadata pair that holds a number."""
    return pair(key, U32, struct.pack("<I", value))


def tensor(name: str, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    """A tensor's entry; the default type is F32."""
    return (
        text(name)
        + struct.pack("<I", len(shape))
        + b"".join(struct.pack("<Q", size) for size in shape)
        + struct.pack("<IQ", kind, offset)
    )


def header(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_pairs: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    """A header by hand, whose counts may lie."""
    counts = struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(pairs) if num_pairs is None else num_pairs,
    )
    return magic + counts + b"".join(pairs) + b"".join(tensors)
