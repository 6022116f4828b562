"""What a step costs, measured: seconds by rows that ask for a token, and prompt tokens per second.

Owns: the moving averages and what follows from them (how long a prompt chunk may be). Does not own:
the clock or the steps (``core.py`` records each one, ``calibration.py`` the first few). Pure.
Next: ``speculation/controller.py`` weighs guesses with it.
"""

from __future__ import annotations

from bisect import bisect_right

_EXACT_ROWS = 64
"""Up to here each number of rows has an average of its own; above, an eighth more shares one."""
_WEIGHT = 0.2
"""Of a new measurement in its average."""
_OUTLIER = 1.25
"""A step that another process disturbed counts as so many times the average at most."""
_FIRST = 3
"""The first measurements of an average, of which the least counts: they meet cold caches."""
_PACE_RISE, _PACE_FALL = 0.3, 0.5
"""Of a step like the one before, in the pace: steps are disturbed upwards alone."""
_MIXED_WEIGHT = 0.15
"""Of a step unlike the one before, in the pace: the rest of the difference is the rows'."""
MAX_PADDING = 3
"""Rows that a step may get to fill a group of four."""
_WORTH = 0.95
"""Of the step as it is: padding that saves less is not worth its cells."""
MIN_CHUNK = 32
"""Prompt tokens that a step gets at least, so that a prompt always gets on."""
CHUNK_RATIO = 8
"""A prompt chunk takes at least so many times the time of the decodes beside it (12 % for them)."""
CHUNK_S = 1.0
"""And at least so many seconds: short chunks read all weights for few tokens."""


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
        if value < self.value / 2:
            # Steps are disturbed upwards alone, so what was known before was wrong.
            self.size, self.value = size, value
            return
        self.size += _WEIGHT * (size - self.size)
        self.value += _WEIGHT * (min(value, _OUTLIER * self.value) - self.value)


class StepCosts:
    """Measured costs of steps; everything is 0 until something was measured.

    All numbers of rows share one pace that follows the last few steps: contexts grow and other
    processes come and go, and that slows every step alike. The averages are in units of the pace,
    so a number of rows that was not tried lately is still compared with the others fairly.
    """

    def __init__(self, prefill_tokens: int) -> None:
        """``prefill_tokens`` bounds a prompt chunk beside decodes, whatever was measured."""
        self._prefill_tokens = prefill_tokens
        self._averages: dict[int, Average] = {}
        self._token_seconds = Average()
        self._buckets: list[int] = []
        self._pace = 1.0
        self._rows_before = 0

    def record(self, num_rows: int, num_prompt_tokens: int, seconds: float) -> None:
        """One step: rows that decode (guesses and fillers too) and prompt tokens.

        ``seconds`` are those of the evaluation and the sampling, without the making of guesses.
        """
        if seconds <= 0:
            return
        if num_prompt_tokens == 0 and num_rows > 0:
            average = self._averages.get(_bucket(num_rows))
            if average is None:
                average = self._averages[_bucket(num_rows)] = Average()
                self._buckets = sorted(self._averages)
            before, self._rows_before = self._rows_before, num_rows
            is_like_before = num_rows == before
            if average.count >= _FIRST:
                if num_rows < before:
                    # llama.cpp builds its graph anew for another size of batch: that is a cost of
                    # the guesses before, not of this step.
                    return
                change = min(_OUTLIER, seconds / (self._pace * average.value)) - 1
                weight = _PACE_RISE if change > 0 else _PACE_FALL
                self._pace *= 1 + (weight if is_like_before else _MIXED_WEIGHT) * change
                if is_like_before:
                    average.count += 1
                    return
            average.add(num_rows, seconds / self._pace)
        elif num_prompt_tokens >= MIN_CHUNK:
            # Shorter chunks measure the reading of the weights and not the tokens.
            left = max(seconds - self.decode_seconds(num_rows), seconds / 4)
            self._token_seconds.add(num_prompt_tokens, left / num_prompt_tokens)

    def measurements(self, num_rows: int) -> int:
        """How often the average that holds ``num_rows`` was measured."""
        average = self._averages.get(_bucket(num_rows))
        return 0 if average is None else average.count

    def decode_seconds(self, num_rows: int) -> float:
        """Expected seconds of a step of ``num_rows`` rows without prompt tokens; 0: unknown.

        Linear between two measured points; fewer rows than any cost what the fewest cost, more
        rows than any grow as the last two points do (in proportion if there is one only).
        """
        if num_rows <= 0 or not self._buckets:
            return 0.0
        return self._pace * self._paces(num_rows)

    def _paces(self, num_rows: int) -> float:
        bucket = _bucket(num_rows)
        exact = self._averages.get(bucket) if bucket <= _EXACT_ROWS else None
        if exact is not None:
            return exact.value
        place = bisect_right(self._buckets, bucket)
        around = [self._averages[one] for one in self._buckets[max(0, place - 2) : place + 1]]
        above = next(
            (index for index, one in enumerate(around) if one.size > num_rows), len(around)
        )
        if above == 0:
            return around[0].value
        low = around[above - 1]
        if above < len(around):
            high = around[above]
            share = (num_rows - low.size) / (high.size - low.size)
            return low.value + share * (high.value - low.value)
        if above == 1:
            return low.value * num_rows / low.size
        before = around[-2]
        slope = max(0.0, (low.value - before.value) / (low.size - before.size))
        return low.value + slope * (num_rows - low.size)

    def quickest_rows(self, num_rows: int) -> int:
        """``num_rows``, or the few more that a step is measured to be quicker with.

        Kernels take rows in groups: with repacked weights seven rows cost more than eight.
        """
        best, least = num_rows, _WORTH * self._measured(num_rows)
        for more in range(num_rows + 1, num_rows + MAX_PADDING + 1):
            seconds = self._measured(more)
            if 0 < seconds < least:
                best, least = more, seconds
        return best

    def _measured(self, num_rows: int) -> float:
        """In units of the pace; 0: not this number of rows, or not often enough."""
        is_known = num_rows <= _EXACT_ROWS and self.measurements(num_rows) >= _FIRST
        return self._paces(num_rows) if is_known else 0.0

    @property
    def prefill_tokens_per_second(self) -> float:
        """Measured speed of prompts; 0: unknown."""
        return 1 / self._token_seconds.value if self._token_seconds.count else 0.0

    def prefill_room(self, num_decodes: int, num_prompts: int = 1) -> int:
        """Prompt tokens for a step in which ``num_decodes`` rows decode.

        A chunk shares its step with one token of everybody else, so short chunks slow the prompt
        and long ones the others. This is the shortest that leaves the prompt about 88 % of the
        time; it grows with ``num_prompts``, so that many are not held up by few.
        """
        most = self._prefill_tokens
        if num_decodes == 0 or not self._buckets or not self._token_seconds.count:
            return most
        seconds = max(CHUNK_S, CHUNK_RATIO * self.decode_seconds(num_decodes))
        wanted = seconds * self.prefill_tokens_per_second
        room = max(min(MIN_CHUNK, most), min(most, int(wanted) + 1))
        return room * max(1, num_prompts // num_decodes)

    def table(self) -> dict[str, float]:
        """Measured seconds by rows, for ``RuntimeReport.step_seconds``."""
        averages = [self._averages[bucket] for bucket in self._buckets]
        return {str(round(one.size)): self._pace * one.value for one in averages}


def _bucket(num_rows: int) -> int:
    """The average that ``num_rows`` belong to, by its least number of rows."""
    if num_rows <= _EXACT_ROWS:
        return num_rows
    step = 1 << (num_rows.bit_length() - 4)
    return num_rows - num_rows % step
