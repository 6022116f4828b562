"""Did the engine end for want of memory, and whose? The operator plans anew after such an end.

Owns: reading it from llama.cpp's words and from the kernel's count of kills in our control group.
Does not own: ending (``server.py``). The words are those of llama.cpp 0c1e570 and its backends; a
shortage that they do not name ends as any other failure. Next: ``server.py``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from terrace_runtime.contract import EXIT_DEVICE_MEMORY, EXIT_HOST_MEMORY
from terrace_runtime.node.cgroups import ROOT, kills

if TYPE_CHECKING:
    from pathlib import Path

_BUFFER = re.compile(r"(?:unable|failed) to allocate (\S+) buffer\b(?! for)")
"""ggml-alloc.c, llama-model.cpp: the name of the buffer's type."""
_HOST_BUFFER = re.compile(r"CPU|AMX|output$|\S+_Host$")
_DEVICE = re.compile(
    r"cudaMalloc failed|CUDA error: out of memory|ErrorOutOfDeviceMemory|"
    r"OutOfDeviceMemoryError|failed to allocate Metal buffer|can't allocate \d+ Bytes of memory on"
)
_HOST = re.compile(r"bad_alloc|failed to allocate buffer of size \d+|failed to allocate +[\d.]+ MB")


class OutOfMemoryKills:
    """How often the kernel has killed in our group since this was made."""

    def __init__(self, root: Path = ROOT) -> None:
        """``root``: where /proc and /sys are."""
        self._root = root
        self._before = kills(root)

    @property
    def count(self) -> int:
        """0 where nobody counts."""
        return kills(self._root) - self._before


def memory_exit(words: str, kills: int) -> int | None:
    """Exit code for an engine that ended with ``words``; None: memory was not the reason.

    ``kills``: how often the kernel has killed for memory in our group.
    """
    buffers = _BUFFER.findall(words)
    if _DEVICE.search(words) or any(not _HOST_BUFFER.match(name) for name in buffers):
        return EXIT_DEVICE_MEMORY
    is_killed = "SIGKILL" in words and kills > 0
    return EXIT_HOST_MEMORY if is_killed or buffers or _HOST.search(words) else None
