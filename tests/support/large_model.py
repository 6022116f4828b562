"""Writes a model of any size quickly: random Q4_0 blocks, no quantizing.

The blocks are drawn once per matrix shape and shifted from layer to layer, so that no two layers
are alike. Q4_0 is what CPU kernels want repacked, which is a second copy in anonymous memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np

from support.tiny_model import byte_vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

WIDTH, FEED_FORWARD, HEAD = 1024, 4096, 64
LAYER_BYTES = (4 * WIDTH * WIDTH + 3 * WIDTH * FEED_FORWARD) // 32 * 18
"""Weights of one layer in the file."""
_Q4_0 = gguf.GGMLQuantizationType.Q4_0


def large_model(path: Path, layers: int, *, context: int = 4096, head: int = HEAD) -> Path:
    """A plain decoder of ``layers`` times LAYER_BYTES, with a vocabulary of bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("large")
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(WIDTH // head)
    writer.add_head_count_kv(WIDTH // head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    num_tokens = byte_vocabulary(writer)
    square, wide, tall = (
        _blocks(WIDTH, WIDTH),
        _blocks(FEED_FORWARD, WIDTH),
        _blocks(WIDTH, FEED_FORWARD),
    )
    _norm(writer, "output_norm")
    for name in ("token_embd", "output"):
        _matrix(writer, name, _blocks(num_tokens, WIDTH))
    for layer in range(layers):
        at = f"blk.{layer}."
        _norm(writer, f"{at}attn_norm")
        _norm(writer, f"{at}ffn_norm")
        for number, name in enumerate(("attn_q", "attn_k", "attn_v", "attn_output")):
            _matrix(writer, f"{at}{name}", np.roll(square, 4 * layer + number, axis=0))
        _matrix(writer, f"{at}ffn_gate", np.roll(wide, 2 * layer, axis=0))
        _matrix(writer, f"{at}ffn_up", np.roll(wide, 2 * layer + 1, axis=0))
        _matrix(writer, f"{at}ffn_down", np.roll(tall, layer, axis=0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _blocks(rows: int, columns: int) -> NDArray[np.uint8]:
    """(rows, bytes of a row): a 16-bit scale and 32 values of 4 bits in every 18 bytes."""
    draw = np.random.default_rng(rows + columns)
    blocks = draw.integers(0, 256, (rows, columns // 32, 18), np.uint8)
    scale = np.float16(columns**-0.5 / 4.6)  # 4.6: deviation of a nibble
    blocks[:, :, :2] = np.frombuffer(scale.tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def _matrix(writer: gguf.GGUFWriter, name: str, blocks: NDArray[np.uint8]) -> None:
    writer.add_tensor(f"{name}.weight", blocks, raw_dtype=_Q4_0)


def _norm(writer: gguf.GGUFWriter, name: str) -> None:
    writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
