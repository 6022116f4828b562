"""Files shaped as real models: a whole header over sparse weights, and what our reader says of it.

Owns: writing them (metadata, a vocabulary that llama.cpp takes, tensor positions) and the list of
all shapes. Does not own: sizes (``shapes_of_*.py``) or tensor names (``shape_tensors*.py``). A file
is as long as the real one and takes a few MiB on disk, for its weights are a hole.
Usage: ``PYTHONPATH=tests python -m support.model_shapes NAME FILE``.
"""

from __future__ import annotations

import io
import struct
import sys
from dataclasses import replace
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from support.gguf_files import ARR, BOOL, STR, U32, header, pair, tensor, text
from support.shape_tensors import ModelShape, Tensor, all_tensors
from support.shapes_of_decoders import DENSE, SLIDING
from support.shapes_of_mixtures import MIXTURES
from support.shapes_of_others import ENCODERS, PAIRS, RECURRENT
from terrace_runtime.models.facts import model_facts
from terrace_runtime.models.gguf_header import read_header
from terrace_runtime.models.gguf_types import TENSOR_TYPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from terrace_runtime.contract import ModelFacts

SHAPES: Final[dict[str, ModelShape]] = {
    **DENSE,
    **SLIDING,
    **MIXTURES,
    **RECURRENT,
    **ENCODERS,
    **PAIRS,
}
_I32, _F32 = 5, 6
_ALIGNMENT = 32
_MOST_TOKENS = 270_000
_NUMBERS: Final = {kind.name: number for number, kind in TENSOR_TYPES.items()}
_SMALL_BLOCKS: Final = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
"""Types of matrices whose rows are no multiple of 256, as llama-quantize chooses them."""


def write_header(name: str, path: Path, quantization: str = "") -> Path:
    """A file of the shape ``name``: header and vocabulary, then nothing but a hole.

    ``quantization`` is ``Q4_K_M``, ``MXFP4`` (experts, all else Q8_0) or a weight type.
    """
    head, length = _file(name, quantization)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(length)
    return path


@cache
def facts(name: str, quantization: str = "") -> ModelFacts:
    """What our own reader says of the shape ``name``."""
    head, length = _file(name, quantization)
    return model_facts(read_header(io.BytesIO(head), length), "5" * 64)


def head_of(name: str, vocabulary: int) -> bytes:
    """The header of the shape ``name`` with another vocabulary."""
    return _bytes_of(replace(SHAPES[name], vocabulary=vocabulary), "")[0]


def _file(name: str, quantization: str) -> tuple[bytes, int]:
    return _bytes_of(SHAPES[name], quantization)


def _bytes_of(shape: ModelShape, quantization: str) -> tuple[bytes, int]:
    wanted = quantization or shape.quantization
    entries, offset = [], 0
    for item in all_tensors(shape):
        kind = TENSOR_TYPES[_NUMBERS[_type_of(item, wanted, shape)]]
        count = 1
        for size in item.shape:
            count *= size
        entries.append(tensor(item.name, item.shape, _NUMBERS[kind.name], offset))
        offset = _padded(offset + count // kind.block_elements * kind.block_bytes)
    head = header(_pairs(shape), entries)
    head += bytes(_padded(len(head)) - len(head))
    return head, len(head) + offset


def _type_of(item: Tensor, wanted: str, shape: ModelShape) -> str:
    if item.is_plain or len(item.shape) == 1:
        return "F32"
    kind = wanted
    if wanted == "MXFP4":
        kind = "MXFP4" if "_exps." in item.name else "Q8_0"
    if wanted == "Q4_K_M":
        kind = "Q6_K" if _is_kept_finer(item.name, shape) else "Q4_K"
    block = TENSOR_TYPES[_NUMBERS[kind]].block_elements
    if item.shape[0] % block:
        kind = _SMALL_BLOCKS.get(kind, "F16")
    return "F16" if item.shape[0] % TENSOR_TYPES[_NUMBERS[kind]].block_elements else kind


def _is_kept_finer(name: str, shape: ModelShape) -> bool:
    """Q6_K of Q4_K_M: the head, and values and down in half of the layers (use_more_bits)."""
    if name == "output.weight" or (name == "token_embd.weight" and shape.is_tied):
        return True
    if "attn_v." not in name and "ffn_down" not in name:
        return False
    layer, eighth = int(name.split(".")[-3]), shape.layers // 8
    return layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2


def _pairs(shape: ModelShape) -> list[bytes]:
    own = {
        "context_length": shape.context,
        "embedding_length": shape.width,
        "block_count": shape.layers,
        "vocab_size": shape.vocabulary,
        "feed_forward_length": shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        **_head_keys(shape),
        **_expert_keys(shape),
        **shape.keys,
    }
    pairs = [_pair("general.architecture", shape.architecture), _pair("general.name", "a shape")]
    pairs += [_pair(f"{shape.architecture}.{key}", value) for key, value in own.items()]
    return pairs + _vocabulary(shape.vocabulary)


def _head_keys(shape: ModelShape) -> dict[str, Any]:
    if not any(shape.heads_of(layer) for layer in range(shape.layers)):
        return {}
    length = shape.head_length
    return {
        "attention.key_length": length,
        "attention.value_length": length,
        "rope.dimension_count": length,
        "rope.freq_base": 10_000.0,
    }


def _expert_keys(shape: ModelShape) -> dict[str, Any]:
    if not shape.experts:
        return {}
    keys = {
        "expert_count": shape.experts,
        "expert_used_count": shape.experts_used,
        "expert_feed_forward_length": shape.expert_width,
        "leading_dense_block_count": shape.dense_layers,
    }
    if shape.shared_width:
        keys["expert_shared_feed_forward_length"] = shape.shared_width
    return keys


def _vocabulary(count: int) -> list[bytes]:
    """Tokens of which no two join; llama.cpp's tokenizer of GPT-2 takes them."""
    tokens, ends = _tokens()
    return [
        _pair("tokenizer.ggml.model", "gpt2"),
        _pair("tokenizer.ggml.pre", "default"),
        pair("tokenizer.ggml.tokens", ARR, struct.pack("<IQ", STR, count) + tokens[: ends[count]]),
        _pair("tokenizer.ggml.merges", ["a b"]),
        _pair("tokenizer.ggml.bos_token_id", 0),
        _pair("tokenizer.ggml.eos_token_id", 1),
        _pair("tokenizer.ggml.token_type_count", 2),
    ]


@cache
def _tokens() -> tuple[bytes, list[int]]:
    """All that a vocabulary may have, as they lie in a file, and where each of them starts."""
    names = [*"abcdefghijklmnopqrstuvwxyz\u0120\u010a", *(f"t{i}" for i in range(_MOST_TOKENS))]
    items = [text(name) for name in names]
    return b"".join(items), [0, *accumulate(map(len, items))]


def _pair(key: str, value: Any) -> bytes:
    if isinstance(value, bool):
        return pair(key, BOOL, bytes([value]))
    if isinstance(value, int):
        return pair(key, U32, struct.pack("<I", value))
    if isinstance(value, float):
        return pair(key, _F32, struct.pack("<f", value))
    if isinstance(value, str):
        return pair(key, STR, text(value))
    return pair(key, ARR, _array(value))


def _array(values: Sequence[Any]) -> bytes:
    is_text = isinstance(values[0], str)
    items = [text(value) if is_text else struct.pack("<i", value) for value in values]
    return struct.pack("<IQ", STR if is_text else _I32, len(values)) + b"".join(items)


def _padded(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT


if __name__ == "__main__":
    sys.stdout.write(f"{write_header(sys.argv[1], Path(sys.argv[2]))}\n")
