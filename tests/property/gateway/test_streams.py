"""Cutting streams at events changes nothing but the grouping."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from terrace.gateway.sse import MAX_HELD_BYTES, EventCutter

pieces = st.lists(
    st.one_of(st.sampled_from([b"\n", b"\n\n", b"\r\n", b"\r\n\r\n", b"data: x", b": ping\n\n"]),
              st.binary(max_size=12)),
    max_size=30,
)  # fmt: skip


@given(pieces)
def test_all_bytes_come_out_in_order(chunks: list[bytes]) -> None:
    cutter = EventCutter()
    out = [cutter.feed(chunk) for chunk in chunks]
    assert b"".join(out) + cutter.rest() == b"".join(chunks)


@given(pieces)
def test_what_is_passed_on_ends_where_an_event_ends(chunks: list[bytes]) -> None:
    cutter = EventCutter()
    passed = b""
    for chunk in chunks:
        passed += cutter.feed(chunk)
        assert not passed or passed.endswith((b"\n\n", b"\r\n\r\n"))


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=20))
def test_whole_events_pass_at_once(texts: list[bytes]) -> None:
    cutter = EventCutter()
    for text in texts:
        event = b"data: " + text.replace(b"\n", b".").replace(b"\r", b".") + b"\n\n"
        assert cutter.feed(event) == event


def test_an_event_without_end_is_not_held_without_bound() -> None:
    cutter = EventCutter()
    passed = b"".join(cutter.feed(b"x" * 1024) for _ in range(1000))
    assert len(passed) + len(cutter.rest()) == 1_024_000
    assert len(passed) >= 1_024_000 - MAX_HELD_BYTES - 1024
