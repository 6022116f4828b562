"""The fake backend's sequence state, in the very format of llama.cpp's (state version 3).

Owns: one layer whose key row is the token and whose value row is the token turned around, so that
a lost, doubled or foreign row shows. Does not own: cutting it into blocks (``kv.blob``). Next:
``fake.py`` keeps the tokens.
"""

from __future__ import annotations

import struct

import numpy as np

MAGIC = 0xAF143CD8
_TURNED = 0x5A5A5A5A
_ROW = 4
_TYPE = 24
"""GGML_TYPE_I8 in ggml; any number will do."""


def encode_state(slot: int, stream: int, num_streams: int, cells: list[tuple[int, int]]) -> bytes:
    """State of a sequence that holds ``cells``, each a position and a token."""
    parts = [struct.pack("<IiI", MAGIC, slot, num_streams)]
    for index in range(num_streams):
        count = len(cells) if index == stream else 0
        parts.append(struct.pack("<I", count))
        if not count:
            continue
        parts += [struct.pack("<iIi", position, 1, slot) for position, _ in cells]
        rows = np.asarray([token for _, token in cells], "<u4")
        head = struct.pack("<iQ", _TYPE, _ROW)
        parts += [struct.pack("<II", 0, 1), head, rows.tobytes(), head]
        parts.append((rows ^ _TURNED).tobytes())
    return b"".join(parts)


def decode_state(data: bytes, num_streams: int) -> list[tuple[int, int]] | None:
    """(position, token) of each cell, or None for bytes that llama.cpp would refuse."""
    try:
        magic, _, streams = struct.unpack_from("<IiI", data, 0)
        if magic != MAGIC or streams != num_streams:
            return None
        at = 12
        found: list[tuple[int, int]] = []
        for _ in range(num_streams):
            (count,) = struct.unpack_from("<I", data, at)
            at += 4
            if count:
                cells, at = _decode_stream(data, at, count)
                found = cells
    except (struct.error, ValueError):
        return None
    return found


def _decode_stream(data: bytes, at: int, count: int) -> tuple[list[tuple[int, int]], int]:
    positions = []
    for _ in range(count):
        position, num_sequences, _ = struct.unpack_from("<iIi", data, at)
        at += 12
        if num_sequences != 1:
            raise ValueError("a cell of several sequences")
        positions.append(position)
    transposed, layers = struct.unpack_from("<II", data, at)
    at += 8
    if (transposed, layers) != (0, 1):
        raise ValueError("another model's layers")
    rows = []
    for _ in range(2):
        if struct.unpack_from("<iQ", data, at) != (_TYPE, _ROW):
            raise ValueError("another type of rows")
        at += 12
        rows.append(np.frombuffer(data, "<u4", count, at))
        at += _ROW * count
    keys, values = rows
    if (keys ^ _TURNED != values).any():
        raise ValueError("keys and values of different tokens")
    return list(zip(positions, keys.tolist(), strict=True)), at
