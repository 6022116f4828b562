"""Log probabilities go out with their text, whatever bytes a model writes and wherever it stops."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import example, given
from hypothesis import strategies as st

from support.engine_builders import runtime_config
from terrace_runtime.api.wire import CompletionWire
from terrace_runtime.engine.detokenizer import Detokenizer, PieceTable
from terrace_runtime.engine.request import FinishReason, RequestOutput, TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL = runtime_config().model
PIECES = [b"", b"a", b"th", "é".encode(), b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"\xff", b"e b"]
"""Number 0 is a control token; some are parts of a character, and some never can be."""
steps = st.lists(st.lists(st.integers(0, len(PIECES) - 1), max_size=3), min_size=1, max_size=12)
stops = st.sampled_from([(), ("th",), ("ae",), ("\ufffd",), ("€", "e b")])


def outputs_of(found: Sequence[Sequence[int]], stop: tuple[str, ...]) -> list[RequestOutput]:
    """What the engine gives: texts that are certain, each token's entry at once."""
    detokenizer = Detokenizer(PieceTable(PIECES), stop)
    outputs = []
    for index, tokens in enumerate(found):
        text, entries = "", []
        for token in tokens:
            if not detokenizer.stopped:
                text += detokenizer.add(token)
                piece = PIECES[token] or b"<|eot|>"
                count = len(PIECES[token])
                entries.append(TokenLogprobs(piece.decode("latin-1"), -1.0, (), count))
        is_last = detokenizer.stopped or index == len(found) - 1
        finish = FinishReason.STOP if is_last else None
        text += detokenizer.finish() if is_last else ""
        count = len(entries)
        outputs.append(RequestOutput("a", text, count, 1, 0, finish, logprobs=tuple(entries)))
        if is_last:
            break
    return outputs


def new_wire() -> CompletionWire:
    return CompletionWire("id", 0, MODEL, "fp", wants_usage=False, wants_logprobs=True)


def streamed(outputs: Sequence[RequestOutput]) -> dict[str, list[Any]]:
    wire = new_wire()
    events = b"".join(wire.event(0, output) for output in outputs).split(b"\n\n")
    found: dict[str, list[Any]] = {"tokens": [], "text_offset": []}
    for event in filter(None, events):
        logprobs = json.loads(event.removeprefix(b"data: "))["choices"][0]["logprobs"]
        for name in found:
            found[name] += logprobs[name] if logprobs else []
    return found


def whole(outputs: Sequence[RequestOutput]) -> dict[str, list[Any]]:
    wire = new_wire()
    for output in outputs:
        wire.collect(0, output)
    found: dict[str, list[Any]] = wire._collected(0) or {}
    return {name: found[name] for name in ("tokens", "text_offset")}


@example([[8], [2, 9]], ("th",))
@example([[1], [8], [8], [1]], ())
@example([[4], [1]], ())
@given(steps, stops)
def test_a_stream_has_the_entries_of_the_document(
    found: list[list[int]], stop: tuple[str, ...]
) -> None:
    outputs = outputs_of(found, stop)
    assert streamed(outputs) == whole(outputs)


@example([[8], [2, 9]], ("th",))
@example([[9, 9], [8, 8], [2, 2]], ("th",))
@given(steps, stops)
def test_those_whose_text_was_given_are_there_and_no_others(
    found: list[list[int]], stop: tuple[str, ...]
) -> None:
    outputs = outputs_of(found, stop)
    text = "".join(output.text for output in outputs)
    raw = b""
    expected: list[int] = []
    waiting = []
    for token in (one for output in outputs for one in output.logprobs):
        own = token.piece.encode("latin-1")[: token.num_bytes]
        # Bytes that end inside a character are one character with "replace".
        waiting.append(len((raw + own[:1]).decode("utf-8", "replace")) - bool(own))
        raw += own
        if waiting[-1] < len(text):
            expected += waiting
            waiting.clear()
    shown = whole(outputs)
    assert shown["text_offset"] == expected
    for offset, name in zip(shown["text_offset"], shown["tokens"], strict=True):
        if name.isascii() and name[:1] not in "<b":
            assert text[offset:].startswith(name[: len(text) - offset])
