"""The one piece of memory that all KV blocks of the host lie in.

Owns: reserving it, touching it ahead of use, and which buffers are free. Does not own: what lies
in a buffer (``host_tier.py``). A page's first touch costs about 35 times a copy on a virtual
machine, so a thread touches the buffers one by one and the engine takes touched ones first. Next:
``host_tier.py`` says which block lies in which buffer.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SLICE_BYTES = 1 << 20
"""Touched at a time, so that the thread ends soon when it is told to."""
_NICE = 19
_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)


class Arena:
    """Buffers of one size. ``take`` and ``give`` belong to one thread; they never allocate."""

    def __init__(self, num_buffers: int, buffer_bytes: int) -> None:
        """Reserve the address space; MemoryError with the size when the system refuses it."""
        # One more than promised: the thread may hold one at the moment when all others are out.
        num_buffers += 1
        self._is_closed = threading.Event()
        memory = reserve(num_buffers * buffer_bytes)
        self._free: deque[int] = deque()
        self._lock = threading.Lock()
        # Untouched buffers: the thread goes up from the first, the engine down from the last.
        self._first_untouched, self._end_untouched = 0, num_buffers
        self._buffers = np.frombuffer(memory, np.uint8).reshape(num_buffers, buffer_bytes)
        self._toucher = threading.Thread(target=self._touch, name="kv-arena", daemon=True)
        self._toucher.start()

    @property
    def num_untouched(self) -> int:
        """Buffers whose first use would be slow."""
        return self._end_untouched - self._first_untouched

    @property
    def touched_bytes(self) -> int:
        """Memory that its buffers take by now."""
        return self._buffers.nbytes - self.num_untouched * self._buffers.shape[1]

    def take(self) -> int:
        """A free buffer's number, a touched one if there is any; IndexError: all are out."""
        if self._free:
            return self._free.pop()
        with self._lock:
            if self._first_untouched < self._end_untouched:
                self._end_untouched -= 1
                return self._end_untouched
        return self._free.pop()  # the thread has moved the last one from there to here

    def give(self, number: int) -> None:
        """Take a buffer back; it is the next to be handed out, for it is warm."""
        self._free.append(number)

    def buffer(self, number: int) -> NDArray[np.uint8]:
        """The bytes of one buffer."""
        view: NDArray[np.uint8] = self._buffers[number]
        return view

    def close(self) -> None:
        """End the thread; the memory goes with the last view of it."""
        self._is_closed.set()
        self._toucher.join()

    def _touch(self) -> None:
        # On Linux a thread has a priority of its own; the model's threads come first.
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not self._is_closed.is_set():
            with self._lock:
                number = self._first_untouched
                if number == self._end_untouched:
                    return
                self._first_untouched += 1
            buffer = self._buffers[number]
            for at in range(0, buffer.nbytes, _SLICE_BYTES):
                # Filling releases the GIL, so the engine's thread goes on meanwhile.
                buffer[at : at + _SLICE_BYTES].fill(0)
            self._free.appendleft(number)


def reserve(num_bytes: int) -> mmap.mmap:
    """Private memory that is taken page by page as it is used; MemoryError names the size."""
    try:
        memory = mmap.mmap(-1, num_bytes, flags=_FLAGS)
    except (OSError, OverflowError) as error:
        raise MemoryError(
            f"{num_bytes} bytes for KV blocks in host memory cannot be reserved ({error}): "
            "lower spillThreshold"
        ) from error
    # Fewer and larger pages: less to touch, and copies miss fewer translations.
    with contextlib.suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
