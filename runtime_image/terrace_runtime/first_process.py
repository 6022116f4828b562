"""A program that is told to end before it is ready ends; imported first, for what it does.

Owns: SIGTERM until the program has a handler of its own. The first process of a container ignores
signals that it does not handle, so a kubelet's SIGTERM during the imports would be lost, and the
pod would stay until its grace period is over. Other processes end by default. Standard library
only, and no import of ours.
"""

import os
import signal
from types import FrameType


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)


if os.getpid() == 1:
    signal.signal(signal.SIGTERM, _end)
