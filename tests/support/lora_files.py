"""Writes small LoRA adapters with random weights, as GGUF files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from terrace_runtime.contract import Adapter

if TYPE_CHECKING:
    from pathlib import Path

DEMO_WIDTH, DEMO_FEED_FORWARD, DEMO_LAYERS = 192, 512, 5
RANK = 4


def lora_file(
    path: Path,
    *,
    seed: int = 1,
    width: int = DEMO_WIDTH,
    feed_forward: int = DEMO_FEED_FORWARD,
    layers: int = DEMO_LAYERS,
    strength: float = 1.0,
    architecture: str = "llama",
    general_type: str = "adapter",
    invocation_tokens: tuple[int, ...] = (),
    dtype: Any = np.float32,
) -> Path:
    """An adapter of the attention's output and of one feed-forward matrix of every layer."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.type", general_type)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    if invocation_tokens:
        writer.add_key_value(
            "adapter.alora.invocation_tokens",
            list(invocation_tokens),
            gguf.GGUFValueType.ARRAY,
            gguf.GGUFValueType.UINT32,
        )
    numbers = np.random.default_rng(seed)
    for layer in range(layers):
        for name, rows, columns in (
            ("attn_output", width, width),
            ("ffn_down", width, feed_forward),
        ):
            at = f"blk.{layer}.{name}.weight"
            down = numbers.standard_normal((RANK, columns)) * columns**-0.5
            up = numbers.standard_normal((rows, RANK)) * strength
            writer.add_tensor(f"{at}.lora_a", down.astype(dtype))
            writer.add_tensor(f"{at}.lora_b", up.astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def adapter(name: str, path: Path, **changes: Any) -> Adapter:
    """The setting for the file at ``path``, with its digest."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Adapter.model_validate({"name": name, "path": str(path), "digest": digest} | changes)
