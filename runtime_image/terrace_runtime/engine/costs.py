"""What a step costs, measured: seconds by rows that ask for a token, and prompt tokens per second.

Owns: the moving averages and what follows from them (how long a prompt chunk may be). Does not own:
the clock or the steps (``core.py`` records each one, ``calibration.py`` the first few). Pure.
Next: ``speculation/controller.py`` weighs guesses with it.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)
"""Smallest number of rows of each moving average; rows between two of them are interpolated."""
_WEIGHT = 0.1
"""Of a new measurement in its average."""
_OUTLIER = 3.0
"""A step that another process disturbed counts as so many times the average at most."""
_FIRST = 3
"""The first measurements of an average, of which the least counts: they meet cold caches."""
MIN_CHUNK = 32
"""Prompt tokens that a step gets at least, so that a prompt always gets on."""
CHUNK_RATIO = 8
"""A prompt chunk takes at least so many times the time of the decodes beside it (12 % for them)."""


class Average:
    """A moving average of (size, value) that one disturbed measurement cannot spoil."""

    __slots__ = ("count", "size", "value")

    def __init__(self) -> None:
        self.count = 0
        self.size = 0.0
        self.value = 0.0

    def add(self, size: float, value: float) -> None:
        """One measurement; ``size`` is averaged as well, for a bucket holds several sizes."""
        self.count += 1
        if self.count <= _FIRST:
            if self.count == 1 or value < self.value:
                self.size, self.value = size, value
            return
        self.size += _WEIGHT * (size - self.size)
        self.value += _WEIGHT * (min(value, _OUTLIER * self.value) - self.value)


class Point(NamedTuple):
    """``seconds`` of a step with ``rows`` rows; rows are a mean and so not whole."""

    rows: float
    seconds: float


class StepCosts:
    """Measured costs of steps; everything is 0 until something was measured."""

    def __init__(self, prefill_tokens: int) -> None:
        """``prefill_tokens`` bounds a prompt chunk beside decodes, whatever was measured."""
        self._prefill_tokens = prefill_tokens
        self._averages: dict[int, Average] = {}
        self._token_seconds = Average()
        self._points: list[Point] = []

    def record(self, num_rows: int, num_prompt_tokens: int, seconds: float) -> None:
        """One step: its rows that are no prompt tokens (guesses and fillers too), and those that are.

        ``seconds`` are those of the evaluation and the sampling, without the making of guesses.
        """
        if seconds <= 0:
            return
        if num_prompt_tokens == 0 and num_rows > 0:
            bucket = bisect_right(BUCKETS, num_rows) - 1
            self._averages.setdefault(bucket, Average()).add(num_rows, seconds)
            self._points = [Point(one.size, one.value) for _, one in sorted(self._averages.items())]
        elif num_prompt_tokens >= MIN_CHUNK:
            # Shorter chunks measure the reading of the weights and not the tokens.
            left = max(seconds - self.decode_seconds(num_rows), seconds / 4)
            self._token_seconds.add(num_prompt_tokens, left / num_prompt_tokens)

    def measurements(self, num_rows: int) -> int:
        """How often the average that holds ``num_rows`` was measured."""
        average = self._averages.get(bisect_right(BUCKETS, num_rows) - 1)
        return 0 if average is None else average.count

    def decode_seconds(self, num_rows: int) -> float:
        """Expected seconds of a step of ``num_rows`` rows without prompt tokens; 0: unknown.

        Linear between two measured points; fewer rows than any cost what the fewest cost, more
        rows than any grow as the last two points do (in proportion if there is one only).
        """
        points = self._points
        if num_rows <= 0 or not points:
            return 0.0
        above = bisect_right(points, float(num_rows), key=lambda point: point.rows)
        if above == 0:
            return points[0].seconds
        low = points[above - 1]
        if above < len(points):
            high = points[above]
            share = (num_rows - low.rows) / (high.rows - low.rows)
            return low.seconds + share * (high.seconds - low.seconds)
        if len(points) == 1:
            return low.seconds * num_rows / low.rows
        before = points[-2]
        slope = max(0.0, (low.seconds - before.seconds) / (low.rows - before.rows))
        return low.seconds + slope * (num_rows - low.rows)

    @property
    def prefill_tokens_per_second(self) -> float:
        """Measured speed of prompts; 0: unknown."""
        return 1 / self._token_seconds.value if self._token_seconds.count else 0.0

    def prefill_room(self, num_decodes: int) -> int:
        """Prompt tokens for a step in which ``num_decodes`` rows decode.

        A chunk shares its step with one token of everybody else, so short chunks slow the prompt
        and long ones the others. This is the shortest that leaves the prompt 88 % of the time.
        """
        most = self._prefill_tokens
        if num_decodes == 0 or not self._points or not self._token_seconds.count:
            return most
        wanted = CHUNK_RATIO * self.decode_seconds(num_decodes) * self.prefill_tokens_per_second
        return max(min(MIN_CHUNK, most), min(most, int(wanted) + 1))

    def table(self) -> dict[str, float]:
        """Measured seconds by rows, for ``RuntimeReport.step_seconds``."""
        return {str(round(point.rows)): point.seconds for point in self._points}
