"""Whatever bytes come, the header reader answers with a header or with an error of ours."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from support.gguf_files import model_file
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.facts import model_facts
from terrace_runtime.models.gguf_header import read_header

REASONS = {"UnsupportedFormat", "Truncated", "InvalidModel"}


@cache
def whole() -> bytes:
    with TemporaryDirectory() as folder:
        return model_file(Path(folder) / "m.gguf", keys={"general.type": "model"}).read_bytes()


@cache
def header_bytes() -> int:
    return read_header(io.BytesIO(whole()), len(whole())).data_start


def outcome(raw: bytes) -> str:
    """ "ok" or the reason of our own error; any other exception fails the test."""
    try:
        model_facts(read_header(io.BytesIO(raw), len(raw)), "0" * 64)
    except FetchError as error:
        found = error
    else:
        return "ok"
    assert found.permanent
    assert found.reason in REASONS
    return found.reason


@given(st.data())
def test_every_cut_is_truncated(data: st.DataObject) -> None:
    cut = data.draw(st.integers(4, len(whole()) - 1))
    assert outcome(whole()[:cut]) == "Truncated"


@given(st.data())
def test_changed_bytes_never_escape_our_errors(data: st.DataObject) -> None:
    raw = bytearray(whole())
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, header_bytes() - 1))
        raw[position] = data.draw(st.integers(0, 255))
    outcome(bytes(raw))


@given(st.binary(max_size=200))
def test_noise_never_escapes_our_errors(noise: bytes) -> None:
    assert outcome(b"GGUF\x03\x00\x00\x00" + noise) in REASONS
