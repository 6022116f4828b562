"""llama.cpp's sequence state (version 3, plain attention) cut into blocks and joined from them.

Owns: the one reading of that format; every header field is checked here or written here. Does not
own: where blocks lie (``store.py``) or moving states in and out (``backend``). Pure.

A state is: u32 magic, i32 sequence, u32 streams; per stream u32 cells and, where not 0: per cell
{i32 position, u32 1, i32 sequence}, u32 0 (V not transposed), u32 layers, then keys and after them
values, layer by layer: {i32 type, u64 bytes of a row, rows}. A block holds the rows of its tokens
in that order, without any header; one that a sequence ends in has room for the rest.

Models with positions of several numbers have larger cells (``places.py``), and a block of theirs
ends with the places of its cells.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from terrace_runtime.kv.places import (
    CELL_BYTES,
    PLACE,
    PLACE_BYTES,
    PLACED_CELL_BYTES,
    cells_at,
    order_by_place,
    order_by_position,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = 0xAF143CD8
MAX_STREAMS = 256
MAX_TENSORS = 2048
MAX_ROW_BYTES = 1 << 24
_MAX_TYPE = 255
_START = struct.Struct("<IiI")
_WORD = struct.Struct("<I")
_LAYERS = struct.Struct("<II")
_HEAD = struct.Struct("<iQ")


@dataclass(frozen=True)
class _Run:
    """Neighbouring tensors of one type and one length of rows: moved by one strided copy."""

    kind: int
    """ggml's number of the type."""
    row_bytes: int
    num_tensors: int
    first_tensor: int
    row_offset: int
    """Bytes of one token's rows in all tensors before this run."""


@dataclass(frozen=True)
class StateLayout:
    """How rows lie in a sequence's state; the same for all states of one loaded model."""

    num_streams: int
    """1 with unified KV, one per slot with split KV, where all but one of them are empty."""
    num_layers: int
    num_tensors: int
    """Keys and values of all layers; with latent attention (MLA) there are keys alone."""
    token_bytes: int
    """Bytes of one token's rows in all tensors."""
    runs: tuple[_Run, ...]
    has_places: bool = False
    """Cells are of the larger kind."""

    @classmethod
    def read(cls, state: NDArray[np.uint8]) -> StateLayout:
        """Learn from a whole real state of one token or more; ValueError for anything else."""
        try:
            return _read_layout(state)
        except struct.error as error:
            raise ValueError("the state ends inside a header") from error

    def block_bytes(self, block_tokens: int) -> int:
        """Bytes of a block: keys then values, layer by layer, a layer's rows together; places."""
        return block_tokens * (self.token_bytes + (PLACE_BYTES if self.has_places else 0))

    @property
    def _cell_bytes(self) -> int:
        return PLACED_CELL_BYTES if self.has_places else CELL_BYTES

    def state_bytes(self, num_tokens: int) -> int:
        """Bytes of a state that holds so many tokens, one at least."""
        return (
            _START.size
            + self.num_streams * _WORD.size
            + num_tokens * (self._cell_bytes + self.token_bytes)
            + _LAYERS.size
            + self.num_tensors * _HEAD.size
        )

    def begin(self, state: NDArray[np.uint8], num_tokens: int, first_position: int = 0) -> None:
        """Write all but the rows into the first ``state_bytes(num_tokens)`` of ``state``.

        The cells get ascending positions and stand in the first stream's entry: llama.cpp puts
        them into the stream of the sequence that they are restored to. Cells of the larger kind
        get theirs from the blocks that are joined.
        """
        self._check_room(state, num_tokens)
        _START.pack_into(state.data, 0, MAGIC, 0, self.num_streams)
        _WORD.pack_into(state.data, _START.size, num_tokens)
        cells = self._cells(state, 0, num_tokens)
        cells[:, 0] = np.arange(first_position, first_position + num_tokens)
        cells[:, 1], cells[:, 2:] = 1, 0
        rows_at = self._rows_at(0, num_tokens)
        _LAYERS.pack_into(state.data, rows_at - _LAYERS.size, 0, self.num_layers)
        for run in self.runs:
            shape = (run.num_tensors, _HEAD.size)
            at, stride = self._run_at(run, rows_at, num_tokens)
            heads = np.ndarray(shape, np.uint8, state, at - _HEAD.size, (stride, 1))
            heads[:] = np.frombuffer(_HEAD.pack(run.kind, run.row_bytes), np.uint8)
        end = self.state_bytes(num_tokens)
        state[end - (self.num_streams - 1) * _WORD.size : end] = 0

    def join(
        self,
        state: NDArray[np.uint8],
        num_tokens: int,
        at_token: int,
        block: NDArray[np.uint8],
        block_tokens: int,
        count: int | None = None,
    ) -> None:
        """Put a block's rows, from token ``at_token`` on, into a state that ``begin`` began.

        ``count``: only so many of its first tokens.
        """
        count = self._check_range(state, num_tokens, at_token, block, block_tokens, count)
        rows_at = self._rows_at(0, num_tokens)
        for run in self.runs:
            target = self._in_state(run, state, rows_at, num_tokens, at_token, count)
            np.copyto(target, _in_block(run, block, block_tokens, count))
        if self.has_places:
            cells = self._cells(state, 0, num_tokens)[at_token : at_token + count]
            cells[:, PLACE] = self._places(block, block_tokens)[:count]

    def cut(
        self,
        state: NDArray[np.uint8],
        num_tokens: int,
        at_token: int,
        block: NDArray[np.uint8],
        block_tokens: int,
        first_position: int = 0,
        count: int | None = None,
    ) -> None:
        """Copy the rows of the tokens from ``at_token`` on into ``block``: ``count``, or all.

        ``state`` holds ``num_tokens`` cells of consecutive positions from ``first_position``, in
        any order. Raises ValueError if it does not. In cells of the larger kind positions only
        ascend, never beyond those.
        """
        count = self._check_range(state, num_tokens, at_token, block, block_tokens, count)
        stream = self._find_stream(state, num_tokens)
        rows_at = self._rows_at(stream, num_tokens)
        cells = self._cells(state, stream, num_tokens)
        wanted = np.arange(count) + (first_position + at_token)
        if self.has_places:
            order = order_by_place(cells, at_token, wanted)
            self._places(block, block_tokens)[:count] = cells[order][:, PLACE]
        else:
            order = order_by_position(cells[:, 0], at_token, wanted)
        if isinstance(order, slice):
            for run in self.runs:
                rows = self._in_state(run, state, rows_at, num_tokens, at_token, count)
                np.copyto(_in_block(run, block, block_tokens, count), rows)
            return
        # A sequence that took the gaps of others has its cells in another order (unified KV).
        for run in self.runs:
            rows = self._in_state(run, state, rows_at, num_tokens, 0, num_tokens)
            targets = _in_block(run, block, block_tokens, count)
            # One by one: numpy's take would first copy all rows of a strided whole.
            for tensor in range(run.num_tensors):
                source = rows[tensor].reshape(num_tokens, run.row_bytes)
                target = targets[tensor].reshape(count, run.row_bytes)
                np.take(source, order, axis=0, out=target, mode="clip")

    def _cells(self, state: NDArray[np.uint8], stream: int, num_tokens: int) -> NDArray[Any]:
        """A view of the cells that stand in a stream's entry, see ``cells_at``."""
        at = _START.size + (stream + 1) * _WORD.size
        return cells_at(state, at, num_tokens, self._cell_bytes)

    def _places(self, block: NDArray[np.uint8], block_tokens: int) -> NDArray[Any]:
        """A view of a block's end: position, column, row and token of each cell."""
        shape = (block_tokens, PLACE_BYTES // 4)
        return np.ndarray(shape, "<i4", block, block_tokens * self.token_bytes)

    def _rows_at(self, stream: int, num_tokens: int) -> int:
        """Where the first head stands."""
        before = _START.size + (stream + 1) * _WORD.size
        return before + num_tokens * self._cell_bytes + _LAYERS.size

    @staticmethod
    def _run_at(run: _Run, rows_at: int, num_tokens: int) -> tuple[int, int]:
        """Where a run's first row stands, and how far apart its tensors are."""
        heads = (run.first_tensor + 1) * _HEAD.size
        at = rows_at + heads + num_tokens * run.row_offset
        return at, _HEAD.size + num_tokens * run.row_bytes

    def _in_state(
        self,
        run: _Run,
        state: NDArray[np.uint8],
        rows_at: int,
        num_tokens: int,
        at: int,
        count: int,
    ) -> NDArray[np.uint8]:
        """A view of ``count`` tokens' rows from token ``at`` on: (tensors, bytes)."""
        first, stride = self._run_at(run, rows_at, num_tokens)
        shape = (run.num_tensors, count * run.row_bytes)
        # numpy checks that the view stays within the buffer; as_strided would not, and is slower.
        return np.ndarray(shape, np.uint8, state, first + at * run.row_bytes, (stride, 1))

    def _find_stream(self, state: NDArray[np.uint8], num_tokens: int) -> int:
        magic, _, num_streams = _START.unpack_from(state.data, 0)
        if magic != MAGIC or num_streams != self.num_streams:
            raise ValueError("this is no state of the model that the layout was read from")
        for stream in range(num_streams):
            (count,) = _WORD.unpack_from(state.data, _START.size + stream * _WORD.size)
            if count:
                if count != num_tokens:
                    raise ValueError(f"the state holds {count} cells, not {num_tokens}")
                return stream
        raise ValueError(f"the state is empty; {num_tokens} cells were expected")

    def _check_room(self, state: NDArray[np.uint8], num_tokens: int) -> None:
        if num_tokens < 1 or state.nbytes < self.state_bytes(num_tokens):
            raise ValueError(f"{state.nbytes} bytes are no room for a state of {num_tokens} tokens")

    def _check_range(
        self,
        state: NDArray[np.uint8],
        num_tokens: int,
        at_token: int,
        block: NDArray[np.uint8],
        block_tokens: int,
        count: int | None,
    ) -> int:
        """How many tokens are moved; ValueError where they do not fit."""
        self._check_room(state, num_tokens)
        if block.nbytes != self.block_bytes(block_tokens):
            raise ValueError(f"a block has {self.block_bytes(block_tokens)} bytes: {block.nbytes}")
        count = block_tokens if count is None else count
        if not 1 <= count <= block_tokens:
            raise ValueError(f"{count} tokens are not in a block of {block_tokens}")
        if not 0 <= at_token <= num_tokens - count:
            raise ValueError(f"{count} tokens from {at_token} on are not in {num_tokens}")
        return count


def _in_block(
    run: _Run, block: NDArray[np.uint8], block_tokens: int, count: int
) -> NDArray[np.uint8]:
    """A view of the rows of a block's first ``count`` tokens: (tensors, bytes)."""
    shape = (run.num_tensors, count * run.row_bytes)
    stride = block_tokens * run.row_bytes
    return np.ndarray(shape, np.uint8, block, block_tokens * run.row_offset, (stride, 1))


def _read_layout(state: NDArray[np.uint8]) -> StateLayout:
    magic, _, num_streams = _START.unpack_from(state.data, 0)
    if magic != MAGIC:
        raise ValueError("the state does not begin with llama.cpp's mark")
    if not 1 <= num_streams <= MAX_STREAMS:
        raise ValueError(f"{num_streams} streams are not in 1..{MAX_STREAMS}")
    at, stream, count = _START.size, 0, 0
    while not count and stream < num_streams:
        (count,) = _WORD.unpack_from(state.data, at)
        at += _WORD.size
        stream += 1
    if not count or count > state.nbytes // CELL_BYTES:
        raise ValueError(f"{count} cells are not what {state.nbytes} bytes can hold")
    end = state.nbytes - (num_streams - stream) * _WORD.size
    if state[max(end, 0) :].any():
        raise ValueError("more than one stream holds cells")
    try:
        found = _read_rows(state, at, end, count, CELL_BYTES)
    except (ValueError, struct.error) as error:
        try:
            found = _read_rows(state, at, end, count, PLACED_CELL_BYTES)
        except (ValueError, struct.error):
            raise error from None
        return _layout(num_streams, *found, has_places=True)
    return _layout(num_streams, *found, has_places=False)


def _read_rows(
    state: NDArray[np.uint8], at: int, end: int, count: int, cell_bytes: int
) -> tuple[int, list[tuple[int, int]]]:
    """Layers and heads of what begins with ``count`` cells of ``cell_bytes``.

    One size alone can be right: the number of layers would be the upper half of a row's bytes.
    """
    after = at + count * cell_bytes
    if after > end or (cells_at(state, at, count, cell_bytes)[:, 1] != 1).any():
        raise ValueError("its cells are not those of one sequence of a plain cache")
    transposed, num_layers = _LAYERS.unpack_from(state.data, after)
    if transposed:
        raise ValueError("values are stored transposed: flash attention is off")
    heads = _read_heads(state, after + _LAYERS.size, end, count)
    if len(heads) not in {num_layers, 2 * num_layers}:
        raise ValueError(f"{len(heads)} tensors are not keys and values of {num_layers} layers")
    return num_layers, heads


def _read_heads(state: NDArray[np.uint8], at: int, end: int, count: int) -> list[tuple[int, int]]:
    """(type, bytes of a row) of each tensor; they must fill the bytes up to ``end`` exactly."""
    heads: list[tuple[int, int]] = []
    while at < end:
        kind, row_bytes = _HEAD.unpack_from(state.data, at)
        if not 0 <= kind <= _MAX_TYPE or not 0 < row_bytes <= MAX_ROW_BYTES:
            raise ValueError(f"tensor {len(heads)} has type {kind} and rows of {row_bytes} bytes")
        if len(heads) == MAX_TENSORS:
            raise ValueError(f"there are more than {MAX_TENSORS} tensors")
        heads.append((kind, row_bytes))
        at += _HEAD.size + count * row_bytes
    if at != end:
        raise ValueError(f"the rows end at byte {at}, the state at {end}")
    return heads


def _layout(
    num_streams: int, num_layers: int, heads: list[tuple[int, int]], *, has_places: bool
) -> StateLayout:
    runs: list[_Run] = []
    tensor = offset = 0
    for (kind, row_bytes), group in groupby(heads):
        size = len(list(group))
        runs.append(_Run(kind, row_bytes, size, tensor, offset))
        tensor += size
        offset += size * row_bytes
    return StateLayout(num_streams, num_layers, tensor, offset, tuple(runs), has_places)
