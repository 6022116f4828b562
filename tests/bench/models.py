"""Writes the synthetic models that benchmarks run on: true shapes and types, random weights.

Owns: the shapes, the vocabulary and the GGUF files, made once and kept in the cache under a digest
of this script. Does not own: what is measured on them (``cases``). Speed is that of a trained
model of the same shape; the text means nothing. A prompt of n digits is a prompt of n tokens, for
merges join letters alone; and every greedy answer is made of digits: other rows of the output head
are next to nothing, and the digits' rows come in pairs of opposite sign, so that one of them is
above zero. So answers never end early, and one that comes back as history is as many tokens.
Weights are drawn as quantised blocks, tensor by tensor, so that 1B takes seconds and little memory.
Usage: ``PYTHONPATH=tests python -m bench.models [NAME...]`` prints the paths.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import string
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

from build.workshop import Workshop, cache_root, cached, say

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONTEXT = 65_536
"""Tokens that the headers promise unless a shape says more; most cases ask for up to 32,768."""
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
DIGITS = slice(ord("0"), ord("9") + 1)
"""Token ids; a byte is a token of its own."""
_HEAD = 64
_SEED = 20_260
_QUIET = np.float16(0.01)
"""Of the rows that are never an answer; not zero, for a tied head is what prompts are read by."""
_BLOCK = 32
"""Weights that share one scale, in both types."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model of the plain llama architecture, or gemma3's; heads are 64 wide."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int = 8192
    is_tied: bool = False
    """The output head is the token embedding."""
    only_digits: bool = True
    """False: every token may be the likeliest, as a sampler of a trained model meets it."""
    context: int = CONTEXT
    window: int = 0
    """Tokens that five of six layers look back, as gemma3's do; 0: all layers see everything."""

    @property
    def architecture(self) -> str:
        """llama.cpp's name."""
        return "gemma3" if self.window else "llama"


TINY = Shape(width=256, layers=12, heads=4, kv_heads=2, feed_forward=1024)
"""16 million parameters: what is not arithmetic shows most."""
MID = Shape(width=768, layers=22, heads=12, kv_heads=4, feed_forward=2048)
"""151 million parameters."""
WINDOWED = replace(MID, window=512)
"""The same with windows: its prefixes are reused as whole states."""
BIG = Shape(
    width=2048,
    layers=16,
    heads=32,
    kv_heads=8,
    feed_forward=8192,
    vocabulary=32_768,
    is_tied=True,
)
"""1.04 billion parameters."""
WORDY = Shape(
    width=256,
    layers=12,
    heads=4,
    kv_heads=2,
    feed_forward=1024,
    vocabulary=152_064,
    only_digits=False,
)
"""The tiny one with a vocabulary of 152k, where sampling is what a step costs."""
LONG = Shape(
    width=256, layers=2, heads=4, kv_heads=2, feed_forward=1024, context=131_072, is_tied=True
)
"""Two layers: attention over 128k tokens of twelve would take two cores half an hour."""
_TYPES = {
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
SHAPES = {
    "tiny": TINY,
    "mid": MID,
    "windowed": WINDOWED,
    "big": BIG,
    "wordy": WORDY,
    "long": LONG,
}
MODELS = {f"{size}-{kind}": (shape, kind) for size, shape in SHAPES.items() for kind in _TYPES}


def model_file(name: str) -> Path:
    """Return the file of one of MODELS, written now when it is not cached."""
    shape, kind = MODELS[name]
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]

    def make(_: Workshop, folder: Path) -> None:
        say(f"writing the benchmark model {name}")
        write_model(folder / "model.gguf", name, shape, kind)

    return cached(cache_root() / "bench-models" / f"{name}-{digest}", make) / "model.gguf"


def vocabulary(count: int) -> tuple[list[str], list[str]]:
    """``count`` tokens by id, and merges of a byte-level BPE over random lower-case words."""
    draw = random.Random(_SEED)
    letters = list(string.ascii_lowercase)
    known = [*_byte_alphabet(), *CONTROL]
    taken, merges = set(known), []
    while len(known) < count:
        left, right = draw.choice(letters), draw.choice(letters)
        joined = left + right
        if len(joined) <= 8 and joined not in taken:
            merges.append(f"{left} {right}")
            known.append(joined)
            taken.add(joined)
            if len(joined) <= 4:
                letters.append(joined)
    return known, merges


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins, by byte: its own character where that is printable."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return [table[byte] for byte in range(256)]


@dataclass(frozen=True)
class _Tensor:
    """A matrix of random weights, or with one row a norm of ones."""

    key: str
    rows: int
    columns: int
    answers: bool = False
    """An output head of which only the digits' rows matter."""

    def blocks(self, numbers: np.random.Generator, kind: str) -> NDArray[np.uint8]:
        """The quantised rows, shape (rows, bytes of a row); the standard deviation is fixed."""
        across = self.columns // _BLOCK
        shape = (self.rows, across, _BLOCK)
        if kind == "q8_0":
            weights = numbers.integers(-127, 128, shape, dtype=np.int8)
            deviation = 73.3
        else:
            # Around 8, which stands for zero; 0 would have no opposite.
            weights = numbers.integers(1, 16, shape, dtype=np.int8) - np.int8(8)
            deviation = 4.32
        scales = np.full((self.rows, across, 1), self.columns**-0.5 / deviation, dtype=np.float16)
        if self.answers:
            half = (DIGITS.stop - DIGITS.start) // 2
            weights[DIGITS.start + half : DIGITS.stop] = -weights[DIGITS.start :][:half]
            scales[: DIGITS.start] *= _QUIET
            scales[DIGITS.stop :] *= _QUIET
        body: NDArray[np.uint8] = weights.view(np.uint8)
        if kind == "q4_0":
            nibbles = (weights + np.int8(8)).view(np.uint8)
            body = np.bitwise_or(nibbles[..., :16], np.left_shift(nibbles[..., 16:], 4))
        return np.concatenate([scales.view(np.uint8), body], axis=2).reshape(self.rows, -1)


def write_model(path: Path, name: str, shape: Shape, kind: str) -> None:
    """Write a GGUF of ``shape`` whose matrices are of type ``kind`` (a key of _TYPES)."""
    tensor_type, file_type = _TYPES[kind]
    writer = gguf.GGUFWriter(str(path), shape.architecture)
    writer.add_name(f"terrace-bench-{name}")
    writer.add_file_type(file_type)
    _add_shape(writer, shape)
    _add_vocabulary(writer, shape.vocabulary)
    tensors = _tensors(shape)
    block_bytes = gguf.GGML_QUANT_SIZES[tensor_type][1]
    for tensor in tensors:
        if tensor.rows == 1:
            size = (tensor.columns,)
            writer.add_tensor_info(tensor.key, size, np.dtype(np.float32), 4 * tensor.columns)
        else:
            # The writer turns bytes of a row back into columns.
            size_bytes = (tensor.rows, tensor.columns // _BLOCK * block_bytes)
            count = size_bytes[0] * size_bytes[1]
            writer.add_tensor_info(
                tensor.key, size_bytes, np.dtype(np.uint8), count, raw_dtype=tensor_type
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    numbers = np.random.default_rng(_SEED)
    for tensor in tensors:
        if tensor.rows == 1:
            writer.write_tensor_data(np.ones(tensor.columns, dtype=np.float32))
        else:
            writer.write_tensor_data(tensor.blocks(numbers, kind))
    writer.close()


def _tensors(shape: Shape) -> list[_Tensor]:
    width = shape.width
    across, keys = shape.heads * _HEAD, shape.kv_heads * _HEAD
    found = [
        _Tensor("token_embd.weight", shape.vocabulary, width, shape.is_tied and shape.only_digits),
        _Tensor("output_norm.weight", 1, width),
    ]
    if not shape.is_tied:
        found.append(_Tensor("output.weight", shape.vocabulary, width, shape.only_digits))
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        found += [
            _Tensor(f"{at}attn_norm.weight", 1, width),
            _Tensor(f"{at}ffn_norm.weight", 1, width),
            _Tensor(f"{at}attn_q.weight", across, width),
            _Tensor(f"{at}attn_k.weight", keys, width),
            _Tensor(f"{at}attn_v.weight", keys, width),
            _Tensor(f"{at}attn_output.weight", width, across),
            _Tensor(f"{at}ffn_gate.weight", shape.feed_forward, width),
            _Tensor(f"{at}ffn_up.weight", shape.feed_forward, width),
            _Tensor(f"{at}ffn_down.weight", width, shape.feed_forward),
        ]
        if shape.window:
            found += [
                _Tensor(f"{at}post_attention_norm.weight", 1, width),
                _Tensor(f"{at}post_ffw_norm.weight", 1, width),
                _Tensor(f"{at}attn_q_norm.weight", 1, _HEAD),
                _Tensor(f"{at}attn_k_norm.weight", 1, _HEAD),
            ]
    return found


def _add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(_HEAD)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    if shape.window:
        writer.add_key_length(_HEAD)
        writer.add_value_length(_HEAD)
        writer.add_sliding_window(shape.window)


def _add_vocabulary(writer: gguf.GGUFWriter, count: int) -> None:
    tokens, merges = vocabulary(count)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in CONTROL else normal for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def main() -> None:
    """Write the named models, by default all, and print their paths."""
    parser = argparse.ArgumentParser(prog="models.py", description="Write the benchmark models.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    names = parser.parse_args().names or list(MODELS)
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        sys.exit(f"error: no model {unknown[0]}; there are {', '.join(MODELS)}")
    for name in names:
        print(model_file(name))


if __name__ == "__main__":
    main()
