"""What crosses between an engine and its client, and its form on a socket.

Owns: the events (engine to client), the commands (client to engine), and length-prefixed frames for
both: JSON, and raw bytes before the JSON that speaks of them by number. No pickle: a frame is data.
Does not own: sockets (``process.py``, ``child.py``). Next: ``frontend.py`` receives events,
``runner.py`` obeys commands.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import orjson

from terrace_runtime.backend import Grammar
from terrace_runtime.contract import Capabilities, DeviceMemory, EngineReport
from terrace_runtime.engine.request import (
    EngineStats,
    FinishReason,
    ImagePart,
    ModelInfo,
    PromptPart,
    Request,
    RequestOutput,
    SamplingParams,
    TokenLogprob,
    TokenLogprobs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# dataclasses.astuple copies deeply, which costs more than the rest of a frame together.
_output_fields = attrgetter(*(field.name for field in fields(RequestOutput)))
_FINISH = [field.name for field in fields(RequestOutput)].index("finish")
_LOGPROBS = [field.name for field in fields(RequestOutput)].index("logprobs")
_stats_fields = attrgetter(*(field.name for field in fields(EngineStats)))

MAX_FRAME_BYTES = 256 * 1024 * 1024
_LENGTH = struct.Struct("!I")
_RAW = 1 << 31
"""Set in the length of a frame of raw bytes."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    info: ModelInfo


@dataclass(frozen=True, slots=True)
class Stepped:
    """One step's outputs, all of them, and the picture after it."""

    outputs: list[RequestOutput]
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class Rejected:
    """A request that can never run."""

    request_id: str
    message: str
    param: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine is dead."""

    reason: str


@dataclass(frozen=True, slots=True)
class Reported:
    """Tiers, sequences and speeds, a few times per second at most."""

    report: EngineReport


Event = Ready | Stepped | Rejected | Failed | Reported


@dataclass(frozen=True, slots=True)
class Submit:
    """Run this request."""

    request: Request


@dataclass(frozen=True, slots=True)
class Abort:
    """End this request."""

    request_id: str


Command = Submit | Abort


def frame(value: object) -> bytes:
    """A length and ``value`` as JSON."""
    body = orjson.dumps(value, default=_dump)
    return _LENGTH.pack(len(body)) + body


def _dump(value: object) -> Any:
    if isinstance(value, Capabilities | DeviceMemory):
        return value.model_dump()
    raise TypeError(f"no form on a socket for {type(value).__name__}")


class FrameReader:
    """Cuts a byte stream into frames: ``bytes`` of raw ones, what the JSON says of others."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The values of all frames that ``data`` completes; raises ValueError for a bad stream."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (head,) = _LENGTH.unpack_from(buffer, start)
            length = head & ~_RAW
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes")
            stop = start + _LENGTH.size + length
            if len(buffer) < stop:
                break
            with memoryview(buffer) as view, view[start + _LENGTH.size : stop] as body:
                value = bytes(body) if head & _RAW else orjson.loads(body)
            start = stop
            yield value
        del buffer[:start]


def encode_event(event: Event) -> bytes:
    """One frame."""
    match event:
        case Stepped(outputs, stats):
            rows = [
                (one.id, one.text, one.num_tokens)
                if one.finish is None and not one.num_prompt_tokens and not one.logprobs
                else _output_fields(one)
                for one in outputs
            ]
            return frame(("stepped", rows, _stats_fields(stats)))
        case Ready(info):
            return frame(("ready", info))
        case Rejected(request_id, message, param):
            return frame(("rejected", request_id, message, param))
        case Failed(reason):
            return frame(("failed", reason))
        case Reported(report):
            return frame(("reported", report.model_dump(mode="json")))


def decode_event(value: Any) -> Event:
    """The event in a frame's value."""
    match value:
        case ["stepped", rows, stats]:
            return Stepped([_output(row) for row in rows], EngineStats(*stats))
        case ["ready", info]:
            info["special_tokens"] = tuple(info["special_tokens"])
            info["capabilities"] = Capabilities(**info["capabilities"])
            info["devices"] = tuple(DeviceMemory(**one) for one in info["devices"])
            return Ready(ModelInfo(**info))
        case ["rejected", request_id, message, param]:
            return Rejected(request_id, message, param)
        case ["failed", reason]:
            return Failed(reason)
        case ["reported", report]:
            return Reported(EngineReport.model_validate(report))
        case _:
            raise ValueError(f"unknown event: {value!r:.80}")


def _output(row: list[Any]) -> RequestOutput:
    if len(row) == 3:  # noqa: PLR2004 - id, text and count: the common row
        return RequestOutput(*row)
    row[_FINISH] = FinishReason(row[_FINISH]) if row[_FINISH] else None
    row[_LOGPROBS] = tuple(_logprobs(item) for item in row[_LOGPROBS])
    return RequestOutput(*row)


def _logprobs(item: dict[str, Any]) -> TokenLogprobs:
    item["top"] = tuple(TokenLogprob(**one) for one in item["top"])
    return TokenLogprobs(**item)


def encode_commands(commands: list[Command]) -> bytes:
    """One frame, behind one for each image's pixels."""
    raw: list[bytes] = []

    def number(value: object) -> int:
        assert isinstance(value, bytes), f"no form on a socket for {type(value).__name__}"
        raw.append(value)
        return len(raw) - 1

    values = [_command_value(command) for command in commands]
    body = orjson.dumps(values, default=number)
    parts = [part for one in raw for part in (_LENGTH.pack(_RAW | len(one)), one)]
    return b"".join((*parts, _LENGTH.pack(len(body)), body))


def _command_value(command: Command) -> Any:
    match command:
        case Submit(request):
            return ("submit", request)
        case Abort(request_id):
            return ("abort", request_id)


def decode_commands(value: Any, raw: Sequence[bytes] = ()) -> list[Command]:
    """The commands in a frame's value; ``raw`` are the frames of bytes that came before it."""
    return [_command(item, raw) for item in value]


def _sampling(values: dict[str, Any]) -> SamplingParams:
    values["dry_sequence_breakers"] = tuple(values["dry_sequence_breakers"])
    values["logit_bias"] = tuple((token, bias) for token, bias in values["logit_bias"])
    if values["grammar"]:
        values["grammar"] = Grammar(**values["grammar"])
    return SamplingParams(**values)


def _part(values: dict[str, Any], raw: Sequence[bytes]) -> PromptPart | ImagePart:
    if "rgb" not in values:
        return PromptPart(**values)
    values["rgb"] = raw[values["rgb"]]
    return ImagePart(**values)


def _command(item: Any, raw: Sequence[bytes]) -> Command:
    match item:
        case ["submit", values]:
            values["prompt"] = tuple(_part(part, raw) for part in values["prompt"])
            values["prompt_tokens"] = tuple(values["prompt_tokens"])
            values["stop"] = tuple(values["stop"])
            values["sampling"] = _sampling(values["sampling"])
            return Submit(Request(**values))
        case ["abort", request_id]:
            return Abort(request_id)
        case _:
            raise ValueError(f"unknown command: {item!r:.80}")
