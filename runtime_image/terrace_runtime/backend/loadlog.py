"""What llama.cpp's log lines say: buffer sizes while loading, placements, and why it failed.

Owns: the callback, parsing and a short memory of lines. Does not own: the lines in our own log
(``llamalog.py``) or the binding, which ``llama.py`` hands in, and which reads sizes from here.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

from terrace_runtime.backend.llamalog import LlamaLines

if TYPE_CHECKING:
    from collections.abc import Callable

_MIB = 1024 * 1024
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|LoRA|compute|output) buffer size\s*=\s*([0-9.]+) MiB")
_OVERRIDDEN = re.compile(r"^tensor (\S+) \(.*\) buffer type overridden to ")
_WARN, _ERROR, _CONTINUE = 3, 4, 5
_MAX_LINE = 500
_MAX_OVERRIDDEN = 65_536
_WEIGHTS, _KV, _COMPUTE = ("model", "LoRA"), ("KV", "RS"), ("compute", "output")


class LoadLog:
    """Receives every line of llama.cpp; keeps sizes of buffers and the last complaints."""

    def __init__(self) -> None:
        self._mib: dict[str, dict[str, float]] = defaultdict(dict)
        """By the buffer's name (``CPU_Mapped``, ``CUDA0``), then by kind."""
        self._complaints: deque[str] = deque(maxlen=3)
        self._level = 0
        self.overridden: list[str] = []
        """Names of tensors that an override placed."""
        self.lock_failure = ""
        """Why weights could not be locked; llama.cpp goes on without."""

    def add(self, level: int, text: str) -> None:
        """One message at a ggml log level; 5 continues the one before."""
        self._level = level = self._level if level == _CONTINUE else level
        line = text.strip()[:_MAX_LINE]
        if not line:
            return
        if level >= _ERROR:
            self._complaints.append(line)
        elif level == _WARN:
            if "failed to mlock" in line:
                self.lock_failure = line
        elif found := _BUFFER.search(line):
            self._add_buffer(*found.groups())
        elif len(self.overridden) < _MAX_OVERRIDDEN and (found := _OVERRIDDEN.match(line)):
            self.overridden.append(found[1])

    def _add_buffer(self, name: str, kind: str, size: str) -> None:
        # Graphs are laid out anew when adapters change, and every time the line comes again.
        known = 0.0 if kind == "compute" else self._mib[name].get(kind, 0.0)
        self._mib[name][kind] = known + float(size)

    @property
    def complaint(self) -> str:
        """The last error lines, joined; empty when there were none."""
        return "; ".join(self._complaints)

    @property
    def weights_bytes(self) -> int | None:
        """Model and adapter buffers, mapped or not."""
        return self._sum(_WEIGHTS)

    @property
    def kv_bytes(self) -> int | None:
        """KV and recurrent state buffers."""
        return self._sum(_KV)

    @property
    def compute_bytes(self) -> int | None:
        """Compute and output buffers."""
        return self._sum(_COMPUTE)

    def device_bytes(self, device: str) -> tuple[int, int, int]:
        """Weights, KV and compute bytes on ``device`` (``CUDA0``)."""
        names = [name for name in self._mib if _belongs(name, device)]
        return self._parts(names)

    def host_bytes(self, devices: list[str]) -> tuple[int, int, int]:
        """The same of all that lies on none of ``devices``."""
        names = [n for n in self._mib if not any(_belongs(n, device) for device in devices)]
        return self._parts(names)

    def _parts(self, names: list[str]) -> tuple[int, int, int]:
        return (
            self._sum(_WEIGHTS, names) or 0,
            self._sum(_KV, names) or 0,
            self._sum(_COMPUTE, names) or 0,
        )

    def _sum(self, kinds: tuple[str, ...], names: list[str] | None = None) -> int | None:
        rows = self._mib.values() if names is None else [self._mib[name] for name in names]
        found = [row[kind] for row in rows for kind in kinds if kind in row]
        return round(sum(found) * _MIB) if found else None


class LogTap:
    """The process-wide log callback of a library; kept for ever, for C holds its address."""

    def __init__(self, lib: Any, set_callback: Callable[[Any, None], None] | None = None) -> None:
        """``lib`` is llama_cpp's low-level module; ``set_callback``: another library than llama."""
        self.sink = LoadLog()
        self._lines = LlamaLines()
        self._set_callback = set_callback or lib.llama_log_set
        self._callback = lib.llama_log_callback(self._receive)

    def install(self, sink: LoadLog) -> None:
        """Have every further line added to ``sink``."""
        self.sink = sink
        self._set_callback(self._callback, None)

    def _receive(self, level: int, text: bytes | None, _user: object) -> None:
        words = (text or b"").decode("utf-8", "replace")
        self.sink.add(level, words)
        self._lines.add(level, words)


def _belongs(buffer: str, device: str) -> bool:
    return buffer == device or buffer.startswith(f"{device}_")
