"""Frames carry every command and event there and back."""

from __future__ import annotations

import pytest

from support.engine_builders import text_request
from terrace_runtime.backend import Grammar
from terrace_runtime.contract import Capabilities, DeviceMemory
from terrace_runtime.engine.messages import (
    Abort,
    Command,
    Event,
    Failed,
    FrameReader,
    Ready,
    Rejected,
    Stepped,
    Submit,
    decode_commands,
    decode_event,
    encode_commands,
    encode_event,
    frame,
)
from terrace_runtime.engine.request import (
    EngineStats,
    FinishReason,
    ModelInfo,
    Request,
    RequestOutput,
    SamplingParams,
    TokenLogprob,
    TokenLogprobs,
)

LOGPROBS = (
    TokenLogprobs("x", -0.5, (TokenLogprob("x", -0.5), TokenLogprob("\xc3", -1.5))),
    TokenLogprobs("\xc3\xa9", -2.0),
)
EVERY_FIELD = SamplingParams(
    seed=3,
    typical_p=0.9,
    dry_sequence_breakers=("\n", "é"),
    logit_bias=((5, -100.0), (7, 0.5)),
    logprobs=2,
    grammar=Grammar("gbnf", "root ::= [a-z]", "grammar"),
)
EVENTS: list[Event] = [
    Ready(
        ModelInfo(
            *(256, 4, 260, 2, "{{ x }}", "<s>", "</s>", ("<a>", "<b>"), "build", 1, None, 3),
            devices=(
                DeviceMemory(name="CUDA0", total_bytes=9, kv_bytes=2),
                DeviceMemory(name="CPU"),
            ),
            capabilities=Capabilities(model_class="encoder", can_embed=True, pooling="mean"),
            tier_bytes=5,
        )
    ),
    Stepped(
        [
            RequestOutput("a", "é雪"),
            RequestOutput("b", "", 1, 17),
            RequestOutput("c", "x", 2, 17, 5, FinishReason.LENGTH),
            RequestOutput("d", "", 0, 0, 0, FinishReason.ERROR, "why"),
            RequestOutput("l", "xé", 2, logprobs=LOGPROBS),
            RequestOutput("e", "", 0, 3, 0, FinishReason.STOP, embedding="AACAPw=="),
        ],
        EngineStats(1, 2, 3, 4, 0.5, 6, 0.7, 8, 0.9, 10, 11),
    ),
    Rejected("r", "too long", "prompt"),
    Failed("broken"),
]
COMMANDS: list[Command] = [
    Submit(text_request("a", "é雪", stop=("x",), tenant="t", priority=1)),
    Submit(Request(id="b", prompt_tokens=(1, 2), sampling=EVERY_FIELD)),
    Submit(Request(id="c", prompt_tokens=(1, 2), embed=True)),
    Abort("a"),
]


@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_everything_arrives_as_it_was_however_the_stream_is_cut(size: int) -> None:
    stream = b"".join(map(encode_event, EVENTS))
    reader = FrameReader()
    found = []
    for start in range(0, len(stream), size):
        found += [decode_event(value) for value in reader.feed(stream[start : start + size])]
    assert found == EVENTS


def test_commands_of_one_turn_travel_in_one_frame() -> None:
    (value,) = FrameReader().feed(encode_commands(COMMANDS))
    assert decode_commands(value) == COMMANDS


def test_a_frame_of_absurd_length_is_refused_before_it_is_read() -> None:
    with pytest.raises(ValueError, match="2147483647 bytes"):
        list(FrameReader().feed(b"\xff" * 4))


@pytest.mark.parametrize("value", [None, [], ["what"], {"a": 1}, ["stepped", 1]])
def test_a_frame_that_is_no_event_is_refused(value: object) -> None:
    (decoded,) = FrameReader().feed(frame(value))
    with pytest.raises((ValueError, TypeError)):
        decode_event(decoded)
