"""Hostile GGUF headers: a seeded corpus, and mutations of it without end.

Owns: what is tried and the bounds that must hold for each: our own error or facts, within a time,
within a memory. Does not own: the reader (``terrace_runtime.models``) or the child around it.
Usage: ``python -m support.header_fuzz SECONDS [SEED]`` prints what was tried, and the seed and
number of the first input that breaks a bound, with which ``mutated`` makes it again.
"""

from __future__ import annotations

import io
import random
import struct
import sys
import time
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from support.gguf_files import ARR, BOOL, STR, U64, header, pair, tensor, text, u32
from support.model_shapes import head_of
from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.facts import facts_of
from terrace_runtime.models.gguf_header import read_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace_runtime.models.gguf_header import Header

REASONS: Final = {"UnsupportedFormat", "Truncated", "InvalidModel"}
MAX_SECONDS: Final = 5.0
"""Of processor time."""
MAX_BYTES: Final = 64 * 2**20
_HUGE: Final = 2**63
_NUMBERS: Final = (
    0,
    1,
    2,
    31,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
_SMALL_SHAPES: Final = (
    "smollm2-135m",
    "gemma-3-1b",
    "mamba-2.8b",
    "lfm2-1.2b",
    "granite-3.1-3b-a800m",
)


@dataclass(frozen=True)
class Outcome:
    """What became of one input."""

    result: str
    """"facts", or the reason of our error."""
    seconds: float
    peak_bytes: int


def corpus() -> dict[str, bytes]:
    """Inputs by what they claim; each may be cut, changed and joined further."""
    return dict(_claims()) | {f"shape {name}": _without_words(name) for name in _SMALL_SHAPES}


def _claims() -> Iterator[tuple[str, bytes]]:
    whole = [pair("general.architecture", STR, text("llama")), u32("llama.block_count", 1)]
    yield "nothing", b""
    yield "magic alone", b"GGUF"
    yield "as many tensors as numbers go", header(whole, num_tensors=2**64 - 1)
    yield "as many keys", header(whole, num_pairs=2**64 - 1)
    yield "a long string", header([pair("k", STR, struct.pack("<Q", _HUGE))])
    yield "a long key", header([struct.pack("<Q", _HUGE) + b"k"])
    yield "a long array", header([pair("k", ARR, struct.pack("<IQ", U64, _HUGE))])
    yield "many strings", header([pair("k", ARR, struct.pack("<IQ", STR, 2**22)) + bytes(2**20)])
    yield "arrays in arrays", header([pair("k", ARR, struct.pack("<IQ", ARR, 1) * 5000)])
    yield "one key twice", header([u32("k", 1), u32("k", 1)])
    yield "an alignment of 0", header([u32("general.alignment", 0)])
    yield "an alignment of 2^31", header([u32("general.alignment", 2**31)])
    yield "a boolean of 7", header([pair("general.x", BOOL, b"\x07")])
    for sizes in ((_HUGE, 4), (2**32, 2**32), (0, 4), (2**62, 2, 2, 2)):
        yield f"a tensor of {sizes}", header(whole, [tensor("token_embd.weight", sizes)])
    over = [tensor("a", (4, 4), offset=0), tensor("b", (4, 4), offset=32)]
    yield "tensors over each other", header(whole, over)
    yield "a tensor far away", header(whole, [tensor("a", (4,), offset=2**63)])
    yield "one tensor twice", header(whole, [tensor("a", (8,)), tensor("a", (8,), offset=32)])
    for key in ("block_count", "attention.head_count", "embedding_length", "expert_count"):
        for number in _NUMBERS[:9]:
            yield f"{key} of {number}", header([*whole[:1], u32(f"llama.{key}", number)])
    cycle = [u32("split.no", 0), u32("split.count", 2)]
    yield "a part of itself", header([*whole, *cycle])


def _without_words(name: str) -> bytes:
    """The head of a real shape; its vocabulary is most of it and would hide all else."""
    return head_of(name, vocabulary=64)


def mutated(seed: int, number: int, inputs: list[bytes]) -> bytes:
    """The ``number``-th input of a seed."""
    draw = random.Random(f"{seed}/{number}")
    raw = bytearray(draw.choice(inputs))
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(raw) + 1)
        kind = draw.randrange(5)
        if kind == 0:
            raw[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            raw[at : at + 8] = struct.pack("<Q", draw.choice(_NUMBERS))
        elif kind == 2:
            raw[at : at + 4] = struct.pack("<I", draw.choice(_NUMBERS) & 0xFFFFFFFF)
        elif kind == 3:
            del raw[at : at + draw.randint(1, 64)]
        else:
            other = draw.choice(inputs)
            raw[at:at] = other[: draw.randint(0, len(other))][-256:]
    return bytes(raw)


def tried(raw: bytes, *, is_weighed: bool) -> Outcome:
    """Read ``raw`` as a model, and as both parts of one; anything but our own error is raised.

    Weighing memory makes it ten times slower.
    """
    if is_weighed:
        tracemalloc.start()
    started = time.thread_time()
    result = "facts"
    try:
        # A sparse file may be as long as its header claims.
        first = read_header(io.BytesIO(raw), max(len(raw), 2**40))
        facts_of(_parts(first), "0" * 64)
    except FetchError as error:
        result = error.reason
    seconds = time.thread_time() - started
    peak = tracemalloc.get_traced_memory()[1] if is_weighed else 0
    tracemalloc.stop()
    return Outcome(result, seconds, peak)


def _parts(first: Header) -> list[Header]:
    return [first, first] if "split.count" in first.metadata else [first]


def check(raw: bytes, *, is_weighed: bool = True) -> Outcome:
    """``tried``, within all bounds; AssertionError names the one that is broken."""
    outcome = tried(raw, is_weighed=is_weighed)
    assert outcome.result in REASONS | {"facts"}, outcome
    assert outcome.seconds <= MAX_SECONDS, outcome
    assert outcome.peak_bytes <= MAX_BYTES, outcome
    return outcome


def main(seconds: float, seed: int) -> None:
    """Try inputs until the time is up."""
    inputs = list(corpus().values())
    ends = time.monotonic() + seconds
    results: dict[str, int] = {}
    slowest = most = 0.0
    number = 0
    while time.monotonic() < ends:
        try:
            outcome = check(mutated(seed, number, inputs), is_weighed=number % 8 == 0)
        except Exception:
            sys.stderr.write(f"seed {seed}, number {number} breaks a bound\n")
            raise
        results[outcome.result] = results.get(outcome.result, 0) + 1
        slowest, most = max(slowest, outcome.seconds), max(most, outcome.peak_bytes)
        number += 1
    found = ", ".join(f"{count} {result}" for result, count in sorted(results.items()))
    sys.stdout.write(
        f"{number} headers from seed {seed}: {found}; slowest {slowest:.2f} s, "
        f"most memory {most / 2**20:.1f} MiB\n"
    )


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 2**32)
