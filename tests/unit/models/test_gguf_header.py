"""The header reader against what hostile and broken files hold."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import pytest

from support.gguf_files import ARR, STR, U32, U64, header, model_file, pair, tensor, text, u32
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.gguf_header import MAX_HEADER_BYTES, Header, Skipped, read_header

if TYPE_CHECKING:
    from pathlib import Path


def read(raw: bytes, file_bytes: int | None = None) -> Header:
    return read_header(io.BytesIO(raw), len(raw) if file_bytes is None else file_bytes)


def failure(raw: bytes, file_bytes: int | None = None) -> FetchError:
    with pytest.raises(FetchError) as caught:
        read(raw, file_bytes)
    return caught.value


def test_reads_what_the_reference_writer_writes(tmp_path: Path) -> None:
    path = model_file(tmp_path / "m.gguf", layers=3, keys={"general.license": "mit"})
    with path.open("rb") as file:
        found = read_header(file, path.stat().st_size)
    assert found.version == 3
    assert found.metadata["llama.block_count"] == 3
    assert found.metadata["general.license"] == "mit"
    assert found.metadata["tokenizer.ggml.tokens"] == Skipped(48)
    assert [t.name for t in found.tensors][:2] == ["token_embd.weight", "blk.0.attn_k.weight"]
    assert found.tensors[0].shape == (64, 48)
    assert found.tensors[0].num_bytes == 48 * 64 // 32 * 34


def test_keeps_short_number_arrays_and_counts_long_ones() -> None:
    short = pair("a", ARR, struct.pack("<IQ", U32, 3) + struct.pack("<3I", 7, 8, 9))
    long = pair("b", ARR, struct.pack("<IQ", U32, 5000) + bytes(20_000))
    found = read(header([short, long, u32("c", 4)]))
    assert found.metadata == {"a": (7, 8, 9), "b": Skipped(5000), "c": 4}


def test_cuts_long_strings_and_reads_on() -> None:
    found = read(header([pair("t", STR, text("x" * 3_000_000)), u32("after", 1)]))
    assert found.metadata["t"] == "x" * 1024
    assert found.metadata["after"] == 1


TOO_MUCH = 2**63
LIES = {
    "wrong magic": (header(magic=b"GGML"), "UnsupportedFormat", "not a GGUF"),
    "version 1": (header(version=1), "UnsupportedFormat", "version 1"),
    "version 4": (header(version=4), "UnsupportedFormat", "version 4"),
    "big-endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "UnsupportedFormat",
        "big-endian",
    ),
    "2^63 keys": (header(num_pairs=TOO_MUCH), "InvalidModel", "limits are"),
    "2^63 tensors": (header(num_tensors=TOO_MUCH), "InvalidModel", "limits are"),
    "key length 2^63": (
        header(num_pairs=1) + struct.pack("<Q", TOO_MUCH),
        "InvalidModel",
        "metadata key is",
    ),
    "string length 2^63": (
        header([pair("k", STR, struct.pack("<Q", TOO_MUCH))]),
        "Truncated",
        "ends inside its header",
    ),
    "array of 2^63 numbers": (
        header([pair("k", ARR, struct.pack("<IQ", U64, TOO_MUCH))]),
        "Truncated",
        "ends inside its header",
    ),
    "array of 2^63 strings": (
        header([pair("k", ARR, struct.pack("<IQ", STR, TOO_MUCH))]),
        "InvalidModel",
        "strings",
    ),
    "array of arrays": (
        header([pair("k", ARR, struct.pack("<IQ", ARR, 1))]),
        "InvalidModel",
        "item type",
    ),
    "unknown value type": (header([pair("k", 99, b"")]), "InvalidModel", "value type 99"),
    "duplicate key": (header([u32("k", 1), u32("k", 1)]), "InvalidModel", "twice"),
    "empty key": (header([u32("", 1)]), "InvalidModel", "empty"),
    "key not UTF-8": (
        header([text(b"\xff\xfe") + struct.pack("<II", U32, 1)]),
        "InvalidModel",
        "UTF-8",
    ),
    "alignment 0": (header([u32("general.alignment", 0)]), "InvalidModel", "power of 2"),
    "alignment 2^31": (header([u32("general.alignment", 2**31)]), "InvalidModel", "power of 2"),
    "alignment 24": (header([u32("general.alignment", 24)]), "InvalidModel", "power of 2"),
    "alignment is text": (
        header([pair("general.alignment", STR, text("32"))]),
        "InvalidModel",
        "power of 2",
    ),
    "5 dimensions": (header(tensors=[tensor("t", [1] * 5)]), "InvalidModel", "5 dimensions"),
    "no dimensions": (header(tensors=[tensor("t", [])]), "InvalidModel", "0 dimensions"),
    "empty dimension": (header(tensors=[tensor("t", [32, 0])]), "InvalidModel", "empty"),
    "product overflow": (
        header(tensors=[tensor("t", [2**32, 2**32, 2**32])]),
        "InvalidModel",
        "too large",
    ),
    "unknown type": (header(tensors=[tensor("t", [32], 77)]), "UnsupportedFormat", "type 77"),
    "removed type": (header(tensors=[tensor("t", [32], 31)]), "UnsupportedFormat", "type 31"),
    "ragged blocks": (header(tensors=[tensor("t", [33], 8)]), "InvalidModel", "multiple of 32"),
    "gap": (header(tensors=[tensor("t", [8], 0, 64)]), "InvalidModel", "should be at 0"),
    "overlap": (
        header(tensors=[tensor("a", [8]), tensor("b", [8])]),
        "InvalidModel",
        "should be at 32",
    ),
    "duplicate tensor": (
        header(tensors=[tensor("a", [8]), tensor("a", [8], 0, 32)]),
        "InvalidModel",
        "twice",
    ),
    "name too long": (header(tensors=[tensor("n" * 64, [8])]), "InvalidModel", "tensor name"),
}


@pytest.mark.parametrize("name", LIES)
def test_refuses_a_lie_with_its_reason(name: str) -> None:
    raw, reason, words = LIES[name]
    error = failure(raw + bytes(64))
    assert (error.reason, error.permanent) == (reason, True)
    assert words in str(error)


def test_a_tensor_past_the_end_says_both_sizes() -> None:
    raw = header(tensors=[tensor("t", [1000])])
    start = (len(raw) + 31) // 32 * 32
    error = failure(raw + bytes(start - len(raw) + 3999))
    assert error.reason == "Truncated"
    assert str(start + 3999) in str(error)
    assert str(start + 4000) in str(error)


def test_a_header_over_the_limit_is_refused_without_being_read() -> None:
    claims = pair("k", STR, struct.pack("<Q", MAX_HEADER_BYTES))
    error = failure(header([claims]) + bytes(4096), file_bytes=2**40)
    assert error.reason == "InvalidModel"
    assert "longer than" in str(error)


def test_a_file_shorter_than_it_claims_is_truncated() -> None:
    error = failure(header(num_pairs=5), file_bytes=2**20)
    assert error.reason == "Truncated"
