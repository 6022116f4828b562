"""Reads the header of a GGUF file (version 2 or 3): metadata and tensor positions, no weights.

Owns: the walk over untrusted bytes, with a bound on every count, length and total; checks that
every tensor lies where llama.cpp will look for it and inside the file. Does not own: what the
numbers mean (``facts``), or the process limits around it (``inspect``). Pure over a binary file.
Format: ggml/docs/gguf.md of ggml-org/ggml. Next: ``facts.model_facts``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from terrace_runtime.models.errors import FetchError
from terrace_runtime.models.gguf_types import ARRAY, SCALARS, STRING, TENSOR_TYPES, TensorType

if TYPE_CHECKING:
    from typing import BinaryIO

MAX_HEADER_BYTES: Final = 256 * 2**20
MAX_KEYS: Final = 65_536
MAX_TENSORS: Final = 65_536
MAX_KEY_BYTES: Final = 1024
MAX_NAME_BYTES: Final = 63
"""GGML_MAX_NAME less the final NUL."""
MAX_DIMENSIONS: Final = 4
MAX_ALIGNMENT: Final = 2**16
MAX_ELEMENTS: Final = 2**63 - 1
MAX_STRING_ITEMS: Final = 8 * 2**20
KEPT_STRING_BYTES: Final = 1024
KEPT_ITEMS: Final = 1024
"""Arrays of numbers up to this length are kept (one value per layer); longer ones are counted."""
_DEFAULT_ALIGNMENT: Final = 32
_CHUNK: Final = 2**20


@dataclass(frozen=True)
class Skipped:
    """An array that was walked over and not kept."""

    count: int


Value = int | float | bool | str | tuple[int | float | bool, ...] | Skipped


class Tensor(NamedTuple):
    """One weight tensor; ``offset`` counts from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def elements(self) -> int:
        """How many weights it has."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return self.elements // self.type.block_elements * self.type.block_bytes


@dataclass(frozen=True)
class Header:
    """What a GGUF says about itself; long strings are cut, long arrays only counted."""

    version: int
    metadata: dict[str, Value] = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)
    data_start: int
    file_bytes: int


def read_header(file: BinaryIO, file_bytes: int) -> Header:
    """Walk the header once. Raises FetchError with UnsupportedFormat, Truncated or InvalidModel."""
    cursor = _Cursor(file, file_bytes)
    version = _read_version(cursor)
    num_tensors, num_keys = cursor.scalar("Q"), cursor.scalar("Q")
    if num_keys > MAX_KEYS or num_tensors > MAX_TENSORS:
        _invalid(
            f"claims {num_tensors} tensors and {num_keys} metadata keys; "
            f"the limits are {MAX_TENSORS} and {MAX_KEYS}"
        )
    metadata: dict[str, Value] = {}
    for _ in range(num_keys):
        key = cursor.text(MAX_KEY_BYTES, "a metadata key")
        if not key or key in metadata:
            _invalid(f"metadata key {key!r} is empty or occurs twice")
        metadata[key] = _read_value(cursor, key)
    alignment = _alignment(metadata)
    tensors = tuple(_read_tensor(cursor) for _ in range(num_tensors))
    data_start = _padded(cursor.position, alignment)
    _check_positions(tensors, alignment, data_start, file_bytes)
    return Header(version, metadata, tensors, data_start, file_bytes)


def _invalid(what: str) -> NoReturn:
    raise FetchError("InvalidModel", f"the GGUF header is not valid: {what}")


class _Cursor:
    """A forward reader over a file with a byte budget; never holds more than a chunk."""

    def __init__(self, file: BinaryIO, file_bytes: int) -> None:
        self._file = file
        self._file_bytes = file_bytes
        self._buffer = b""
        self._offset = 0
        self._start = 0

    @property
    def position(self) -> int:
        """Bytes consumed so far."""
        return self._start + self._offset

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes (at most a chunk)."""
        if self._offset + count > len(self._buffer):
            self._refill(count)
        first = self._offset
        self._offset += count
        return self._buffer[first : self._offset]

    def skip(self, count: int) -> None:
        """Pass over ``count`` bytes without keeping them."""
        self._require(count)
        left = len(self._buffer) - self._offset
        if count <= left:
            self._offset += count
            return
        self._start = self.position + count
        self._buffer, self._offset = b"", 0
        self._file.seek(self._start)

    def scalar(self, code: str) -> int:
        """The next whole number in struct's notation, little-endian."""
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0])

    def text(self, limit: int, what: str) -> str:
        """A length-prefixed UTF-8 string of at most ``limit`` bytes."""
        length = self.scalar("Q")
        if length > limit:
            _invalid(f"{what} is {length} bytes long; the limit is {limit}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            _invalid(f"{what} is not UTF-8")

    def skip_strings(self, count: int) -> None:
        """Pass over ``count`` length-prefixed strings."""
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if self._offset + 8 > len(self._buffer):
                self._refill(8)
            (length,) = unpack(self._buffer, self._offset)
            self._offset += 8
            if self._offset + length <= len(self._buffer):
                self._offset += length
            else:
                self.skip(length)

    def _refill(self, count: int) -> None:
        self._require(count)
        rest = self._buffer[self._offset :]
        self._start += self._offset
        budget = MAX_HEADER_BYTES - self._start
        more = self._file.read(max(count - len(rest), min(_CHUNK, budget) - len(rest)))
        self._buffer, self._offset = rest + more, 0
        if len(self._buffer) < count:
            self._truncated(count)

    def _require(self, count: int) -> None:
        end = self.position + count
        if end > self._file_bytes:
            self._truncated(count)
        if end > MAX_HEADER_BYTES:
            _invalid(f"it is longer than {MAX_HEADER_BYTES} bytes")

    def _truncated(self, count: int) -> NoReturn:
        raise FetchError(
            "Truncated",
            f"the file ends inside its header: it has {self._file_bytes} bytes, "
            f"the header goes on to byte {self.position + count} at least",
        )


def _read_version(cursor: _Cursor) -> int:
    magic = cursor.take(4)
    if magic != b"GGUF":
        raise FetchError("UnsupportedFormat", f"not a GGUF file: it starts with {magic!r}")
    raw = cursor.take(4)
    version = int.from_bytes(raw, "little")
    if version in (2, 3):
        return version
    if int.from_bytes(raw, "big") in (2, 3):
        raise FetchError(
            "UnsupportedFormat",
            "the GGUF is big-endian; convert it with gguf-convert-endian or fetch another file",
        )
    raise FetchError("UnsupportedFormat", f"GGUF version {version} is not supported, 2 and 3 are")


def _read_value(cursor: _Cursor, key: str) -> Value:
    kind = cursor.scalar("I")
    if kind == STRING:
        return _read_string(cursor)
    if kind == ARRAY:
        return _read_array(cursor, key)
    code = SCALARS.get(kind)
    if code is None:
        _invalid(f"metadata key {key!r} has the unknown value type {kind}")
    return _numbers(cursor, code, 1)[0]


def _read_string(cursor: _Cursor) -> str:
    length = cursor.scalar("Q")
    kept = min(length, KEPT_STRING_BYTES)
    text = cursor.take(kept).decode(errors="replace")
    cursor.skip(length - kept)
    return text


def _read_array(cursor: _Cursor, key: str) -> Value:
    kind, count = cursor.scalar("I"), cursor.scalar("Q")
    if kind == STRING:
        if count > MAX_STRING_ITEMS:
            _invalid(f"array {key!r} claims {count} strings; the limit is {MAX_STRING_ITEMS}")
        cursor.skip_strings(count)
        return Skipped(count)
    code = SCALARS.get(kind)
    if code is None:
        # Arrays of arrays are in the format and in no model; llama.cpp refuses them as well.
        _invalid(f"array {key!r} has the unsupported item type {kind}")
    if count > KEPT_ITEMS:
        cursor.skip(count * struct.calcsize("<" + code))
        return Skipped(count)
    return _numbers(cursor, code, count)


def _numbers(cursor: _Cursor, code: str, count: int) -> tuple[int | float | bool, ...]:
    layout = struct.Struct(f"<{count}{code}")
    return layout.unpack(cursor.take(layout.size))


def _alignment(metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(value, int) or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        _invalid(f"general.alignment is {value!r}; it must be a power of 2 up to {MAX_ALIGNMENT}")
    return value


def _read_tensor(cursor: _Cursor) -> Tensor:
    name = cursor.text(MAX_NAME_BYTES, "a tensor name")
    num_dimensions = cursor.scalar("I")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        _invalid(f"tensor {name!r} has {num_dimensions} dimensions; 1 to {MAX_DIMENSIONS} can be")
    shape = tuple(cursor.scalar("Q") for _ in range(num_dimensions))
    number, offset = cursor.scalar("I"), cursor.scalar("Q")
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        raise FetchError(
            "UnsupportedFormat", f"tensor {name!r} has the type {number}, unknown to this build"
        )
    tensor = Tensor(name, shape, kind, offset)
    if 0 in shape or tensor.elements > MAX_ELEMENTS or tensor.num_bytes > MAX_ELEMENTS:
        _invalid(f"tensor {name!r} has the shape {shape}, which is empty or too large")
    if shape[0] % kind.block_elements:
        _invalid(
            f"tensor {name!r} has rows of {shape[0]} values; "
            f"{kind.name} needs a multiple of {kind.block_elements}"
        )
    return tensor


def _check_positions(
    tensors: tuple[Tensor, ...], alignment: int, data_start: int, file_bytes: int
) -> None:
    """Tensors must follow each other without gap or overlap, as llama.cpp demands."""
    expected, seen = 0, set[str]()
    for tensor in tensors:
        if tensor.name in seen:
            _invalid(f"tensor {tensor.name!r} occurs twice")
        seen.add(tensor.name)
        if tensor.offset != expected:
            _invalid(f"tensor {tensor.name!r} is at {tensor.offset} and should be at {expected}")
        expected = _padded(tensor.offset + tensor.num_bytes, alignment)
    end = max((data_start + tensor.offset + tensor.num_bytes for tensor in tensors), default=0)
    if end > file_bytes:
        raise FetchError(
            "Truncated", f"the file has {file_bytes} bytes; its header describes {end} bytes"
        )


def _padded(position: int, alignment: int) -> int:
    return (position + alignment - 1) // alignment * alignment
