"""llama.cpp's own log as log lines: pieces joined to whole lines, its levels, and a bound.

Owns: the translation. Does not own: what the lines mean to us (``loadlog.py``) or where they go
(standard logging, logger ``llama.cpp``). Its lines come on the engine's thread too, so that nothing
here waits.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from terrace_runtime.logs.rate import RateGate

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger("llama.cpp")
_LEVELS: Final = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}
"""ggml.h, enum ggml_log_level. 0 is no level: such lines are tables and dots."""
_CONTINUE: Final = 5
_QUIET: Final = logging.INFO
"""It tells some hundred lines of this level while loading: shown where debug is asked for."""
_MAX_LINE: Final = 1000
_BURST, _PER_SECOND = 2000, 20.0


class LlamaLines:
    """Takes messages as llama.cpp hands them out: several lines at once, or a line in pieces."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._gate = RateGate(clock, _BURST, _PER_SECOND)
        self._level = logging.DEBUG
        self._rest = ""

    def add(self, level: int, text: str) -> None:
        """One message at a ggml log level; 5 continues the one before."""
        if level != _CONTINUE:
            self._tell(self._rest)
            self._rest = ""
            self._level = _LEVELS.get(level, logging.DEBUG)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._tell(line)
        self._rest = self._rest[:_MAX_LINE]

    def _tell(self, line: str) -> None:
        words = line.strip()[:_MAX_LINE]
        is_heard = self._level > _QUIET or _LOG.isEnabledFor(logging.DEBUG)
        if not words or not is_heard or not self._gate.admits():
            return
        held_back = self._gate.take_held_back()
        _LOG.log(self._level, "%s", words, extra={"held_back": held_back} if held_back else None)
