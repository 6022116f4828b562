"""Reading facts in a child: hostile files cost bounded time and memory and end in our errors."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import pytest

import terrace_runtime
from support.gguf_files import ARR, STR, header, pair
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.inspect import file_digest, inspect_file, read_facts

DEMO = Path(terrace_runtime.__file__).parent / "demo" / "chat.gguf"


def reason(path: Path) -> str:
    with pytest.raises(FetchError) as caught:
        read_facts(path)
    return caught.value.reason


def test_the_demo_model_has_the_facts_its_readme_states() -> None:
    facts = inspect_file(DEMO)
    assert facts.digest == hashlib.sha256(DEMO.read_bytes()).hexdigest()
    assert facts.file_bytes == DEMO.stat().st_size
    assert (facts.layer_count, facts.vocabulary, facts.context_length) == (5, 2048, 4096)
    run = facts.layers[0]
    assert 2 * facts.layer_count * run.kv_heads * (run.key_length + run.value_length) == 1280


def test_missing_empty_and_foreign_files_say_what_they_are(tmp_path: Path) -> None:
    empty, page = tmp_path / "empty", tmp_path / "page"
    empty.write_bytes(b"")
    page.write_bytes(b"<!doctype html><html></html>")
    assert reason(tmp_path / "none") == "NotFound"
    assert reason(empty) == "Truncated"
    assert reason(page) == "UnsupportedFormat"
    assert reason(tmp_path) == "InvalidModel"


def test_a_header_of_millions_of_strings_ends_within_its_limits(tmp_path: Path) -> None:
    count = 8 * 2**20
    path = tmp_path / "bomb.gguf"
    with path.open("wb") as file:
        file.write(header([pair("k", ARR, struct.pack("<IQ", STR, count))], num_pairs=2))
        file.truncate(2**33)
    # Zeros read as empty strings, then as an empty key; the sparse file is 8 GiB long.
    assert reason(path) == "InvalidModel"


def test_a_reader_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    os.mkfifo(path)  # Whoever opens it waits for a writer, and there is none.
    with pytest.raises(FetchError, match="took longer than"):
        read_facts(path, wall_s=0.5)


def test_progress_of_the_digest_counts_up_to_the_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(2_500_000))
    seen: list[int] = []
    assert file_digest(path, seen.append) == hashlib.sha256(bytes(2_500_000)).hexdigest()
    assert seen == [2**20, 2**21, 2_500_000]
