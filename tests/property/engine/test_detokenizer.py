"""Text increments are the whole decode, cut at the first stop string and nowhere else."""

from __future__ import annotations

import codecs
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from terrace_runtime.engine.detokenizer import Detokenizer, PieceTable

TEXTS = st.text(alphabet="abé雪🦙 \u0301", max_size=30)
PIECES = st.lists(st.binary(max_size=5) | TEXTS.map(str.encode), max_size=40)
STOPS = st.lists(st.text(alphabet="abé雪", min_size=1, max_size=4), max_size=3)


def increments(pieces: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(PieceTable(pieces), stops)
    texts = []
    for token in range(len(pieces)):
        texts.append(detokenizer.add(token))
        if detokenizer.stopped:
            break
    texts.append(detokenizer.finish())
    return texts, detokenizer.stopped


def cut_bytes(text: str, cuts: list[int]) -> list[bytes]:
    data = text.encode()
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]


@given(PIECES)
def test_increments_join_to_the_whole_decode(pieces: list[bytes]) -> None:
    texts, _ = increments(pieces, [])
    assert "".join(texts) == b"".join(pieces).decode("utf-8", "replace")


@given(TEXTS, st.lists(st.integers(0, 200), max_size=30))
def test_valid_text_cut_anywhere_never_shows_a_replacement_character(
    text: str, cuts: list[int]
) -> None:
    texts, _ = increments(cut_bytes(text, cuts), [])
    assert "".join(texts) == text
    assert not any("\ufffd" in one for one in texts)


@given(PIECES, STOPS)
def test_text_ends_before_the_first_stop_string(pieces: list[bytes], stops: list[str]) -> None:
    texts, stopped = increments(pieces, stops)
    whole = b"".join(pieces).decode("utf-8", "replace")
    places = [whole.find(stop) for stop in stops if stop in whole]
    assert stopped == bool(places)
    assert "".join(texts) == (whole[: min(places)] if places else whole)


@given(PIECES, STOPS)
def test_only_what_may_become_a_stop_string_is_held_back(
    pieces: list[bytes], stops: list[str]
) -> None:
    detokenizer = Detokenizer(PieceTable(pieces), stops)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    shown = decoded = ""
    for token, piece in enumerate(pieces):
        shown += detokenizer.add(token)
        decoded += decoder.decode(piece)
        assert not any(stop in shown for stop in stops)
        if detokenizer.stopped:
            break
        held = decoded.removeprefix(shown)
        assert shown + held == decoded
        assert not held or any(stop.startswith(held) for stop in stops)


@given(st.binary(max_size=40), st.lists(st.integers(0, 200), max_size=10))
def test_where_bytes_are_cut_changes_nothing(data: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [data[a:b] for a, b in pairwise(edges)]
    assert "".join(increments(pieces, [])[0]) == data.decode("utf-8", "replace")
