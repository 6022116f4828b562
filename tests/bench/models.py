"""Writes the synthetic models that benchmarks run on: true shapes and types, random weights.

Owns: the shapes, the vocabulary and the GGUF files, made once and kept in the cache under a digest
of this script. Does not own: what is measured on them (``engine.py``). Speed is that of a trained
model of the same shape; the text means nothing. Rows of the output head that belong to control
tokens and to bytes outside of ASCII are zero, so that greedy decoding never ends early and every
token is a whole piece of text. A prompt of n digits is a prompt of n tokens: merges join letters
alone. Usage: ``PYTHONPATH=tests python -m bench.models [NAME...]`` prints the paths.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import string
import sys
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from build.workshop import Workshop, cache_root, cached, say

VOCABULARY = 8192
CONTEXT = 4096
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
_HEAD = 64
_SEED = 20_260


@dataclass(frozen=True)
class Shape:
    """Sizes of a model of the plain llama architecture; heads are 64 wide."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int


TINY = Shape(width=256, layers=12, heads=4, kv_heads=2, feed_forward=1024)
"""16 million parameters: what is not arithmetic shows most."""
MID = Shape(width=768, layers=22, heads=12, kv_heads=4, feed_forward=2048)
"""151 million parameters."""
_TYPES = {
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
MODELS = {
    f"{size}-{kind}": (shape, kind)
    for size, shape in (("tiny", TINY), ("mid", MID))
    for kind in _TYPES
}


def model_file(name: str) -> Path:
    """Return the file of one of MODELS, written now when it is not cached."""
    shape, kind = MODELS[name]
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]

    def make(_: Workshop, folder: Path) -> None:
        say(f"writing the benchmark model {name}")
        write_model(folder / "model.gguf", name, shape, kind)

    return cached(cache_root() / "bench-models" / f"{name}-{digest}", make) / "model.gguf"


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens by id and merges of a byte-level BPE over random words of lower-case letters."""
    draw = random.Random(_SEED)
    letters = list(string.ascii_lowercase)
    known = [*_byte_alphabet(), *CONTROL]
    taken, merges = set(known), []
    while len(known) < VOCABULARY:
        left, right = draw.choice(letters), draw.choice(letters)
        if len(left + right) <= 8 and left + right not in taken:
            merges.append(f"{left} {right}")
            known.append(left + right)
            letters.append(left + right)
            taken.add(left + right)
    return known, merges


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins, by byte: its own character where that is printable."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return [table[byte] for byte in range(256)]


def write_model(path: Path, name: str, shape: Shape, kind: str) -> None:
    """Write a GGUF of ``shape`` whose matrices are of type ``kind`` (a key of _TYPES)."""
    tensor_type, file_type = _TYPES[kind]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(f"terrace-bench-{name}")
    writer.add_file_type(file_type)
    _add_shape(writer, shape)
    _add_vocabulary(writer)
    numbers = np.random.default_rng(_SEED)

    def matrix(key: str, rows: int, columns: int, *, silent: slice | None = None) -> None:
        scale = columns**-0.5
        weights = numbers.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale)
        if silent is not None:
            weights[silent] = 0
        writer.add_tensor(key, gguf.quants.quantize(weights, tensor_type), raw_dtype=tensor_type)

    def norm(key: str) -> None:
        writer.add_tensor(key, np.ones(shape.width, dtype=np.float32))

    matrix("token_embd.weight", VOCABULARY, shape.width)
    norm("output_norm.weight")
    # Bytes 128 to 255 and the control tokens behind them are never the likeliest.
    matrix("output.weight", VOCABULARY, shape.width, silent=slice(128, 256 + len(CONTROL)))
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        norm(f"{at}attn_norm.weight")
        norm(f"{at}ffn_norm.weight")
        matrix(f"{at}attn_q.weight", shape.heads * _HEAD, shape.width)
        matrix(f"{at}attn_k.weight", shape.kv_heads * _HEAD, shape.width)
        matrix(f"{at}attn_v.weight", shape.kv_heads * _HEAD, shape.width)
        matrix(f"{at}attn_output.weight", shape.width, shape.heads * _HEAD)
        matrix(f"{at}ffn_gate.weight", shape.feed_forward, shape.width)
        matrix(f"{at}ffn_up.weight", shape.feed_forward, shape.width)
        matrix(f"{at}ffn_down.weight", shape.width, shape.feed_forward)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(_HEAD)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    tokens, merges = vocabulary()
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
