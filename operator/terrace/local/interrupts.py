"""Taking a process in hand before an interruption may end us.

Owns: the moment between starting a child and being ready to end it. Does not own: how it is ended
(``build.py``, ``terrace.cli``).
"""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_interrupts() -> Iterator[Callable[[], None]]:
    """Hold back what interrupts us; it happens when the yielded function is called.

    ``Popen`` returns after the child has begun: a handler that raises in between leaves a child
    that nobody knows. Call the function inside the ``try`` that ends the child. Blocking signals
    would not do: another thread takes them, and Python still raises in the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # handlers run in the main thread only
        return
    came: list[int] = []
    with ExitStack() as restored:
        for each in _HELD:
            restored.callback(signal.signal, each, signal.getsignal(each))
            signal.signal(each, lambda number, _: came.append(number))

        def let_through() -> None:
            restored.close()
            while came:
                signal.raise_signal(came.pop(0))

        try:
            yield let_through
        finally:
            let_through()
