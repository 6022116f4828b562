"""What llama.cpp's log lines say: buffer sizes while loading, and why it failed.

Owns: parsing and a short memory of lines. Does not own: the callback itself (``llama.py``) or
where warnings go (standard logging). Next: ``llama.py`` reads sizes into BackendInfo.
"""

from __future__ import annotations

import logging
import re
from collections import deque

_LOG = logging.getLogger("terrace_runtime.backend")
_MIB = 1024 * 1024
_BUFFER = re.compile(r"(model|KV|RS|compute|output) buffer size\s*=\s*([0-9.]+) MiB")
_WARN, _ERROR, _CONTINUE = 3, 4, 5
_MAX_LINE = 500


class LoadLog:
    """Receives every line of llama.cpp; keeps sums of buffer sizes and the last complaints."""

    def __init__(self) -> None:
        self._mib: dict[str, float] = {}
        self._complaints: deque[str] = deque(maxlen=3)
        self._level = 0

    def add(self, level: int, text: str) -> None:
        """One message at a ggml log level; 5 continues the one before."""
        self._level = level = self._level if level == _CONTINUE else level
        line = text.strip()[:_MAX_LINE]
        if not line:
            return
        if level >= _ERROR:
            self._complaints.append(line)
            _LOG.error("llama.cpp: %s", line)
        elif level == _WARN:
            _LOG.debug("llama.cpp: %s", line)
        elif found := _BUFFER.search(line):
            kind, size = found.groups()
            self._mib[kind] = self._mib.get(kind, 0.0) + float(size)

    @property
    def complaint(self) -> str:
        """The last error lines, joined; empty when there were none."""
        return "; ".join(self._complaints)

    @property
    def weights_bytes(self) -> int | None:
        """Model buffers, mapped or not."""
        return self._sum("model")

    @property
    def kv_bytes(self) -> int | None:
        """KV and recurrent state buffers."""
        return self._sum("KV", "RS")

    @property
    def compute_bytes(self) -> int | None:
        """Compute and output buffers."""
        return self._sum("compute", "output")

    def _sum(self, *kinds: str) -> int | None:
        found = [self._mib[kind] for kind in kinds if kind in self._mib]
        return round(sum(found) * _MIB) if found else None
