"""The rows of one decode, in numpy arrays that are made once.

Owns: the arrays and how rows are appended. Does not own: what goes in (``engine.evaluation``) or
how llama.cpp reads it (``rows.py``). Next: ``Backend.decode``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class Batch:
    """Rows of one decode in numpy arrays that are made once and filled again each step."""

    __slots__ = ("capacity", "num_outputs", "outputs", "positions", "sequences", "size", "tokens")

    def __init__(self, capacity: int) -> None:
        """Room for ``capacity`` tokens."""
        self.capacity = capacity
        self.size = 0
        self.num_outputs = 0
        self.tokens: NDArray[np.int32] = np.zeros(capacity, np.int32)
        self.positions: NDArray[np.int32] = np.zeros(capacity, np.int32)
        self.sequences: NDArray[np.int32] = np.zeros(capacity, np.int32)
        self.outputs: NDArray[np.int8] = np.zeros(capacity, np.int8)

    def clear(self) -> None:
        """Forget all rows."""
        self.size = 0
        self.num_outputs = 0

    def extend(self, tokens: Sequence[int], slot: int, position: int, *, outputs: int) -> int:
        """Append ``tokens`` of one sequence from ``position`` on; returns the last one's row.

        ``outputs`` asks for logits of so many of the last tokens.
        """
        start = self.size
        stop = start + len(tokens)
        assert start < stop <= self.capacity, "the batch planner exceeded the batch"
        self.tokens[start:stop] = tokens
        self.positions[start:stop] = range(position, position + len(tokens))
        self.sequences[start:stop] = slot
        self.outputs[start:stop] = 0
        if outputs:
            self.outputs[stop - outputs : stop] = 1
            self.num_outputs += outputs
        self.size = stop
        return stop - 1

    def extend_single(
        self, tokens: Sequence[int], slots: Sequence[int], positions: Sequence[int]
    ) -> None:
        """Append one token of each of several sequences, all with logits."""
        start = self.size
        stop = start + len(tokens)
        assert stop <= self.capacity, "the batch planner exceeded the batch"
        self.tokens[start:stop] = tokens
        self.sequences[start:stop] = slots
        self.positions[start:stop] = positions
        self.outputs[start:stop] = 1
        self.num_outputs += stop - start
        self.size = stop
