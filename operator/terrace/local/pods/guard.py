"""Ends the pods of a runner that was killed: ``python -m terrace.local.pods.guard FOLDER``.

Owns: waiting for the runner's end, which is the end of its standard input, and clearing up after
it. The kernel's parent-death signal reaches only first processes; this reaches their children.
It inherits the runner's lock on the folder, so that a new runner waits until it is done.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from terrace.local.pods import leftovers, scratch


def start(folder: Path, lock_fd: int) -> subprocess.Popen[bytes]:
    """Starts the guard of this process; closing its ``stdin`` lets it finish."""
    return subprocess.Popen(  # noqa: S603  our own module
        [sys.executable, "-m", __name__, str(folder)],
        stdin=subprocess.PIPE,
        pass_fds=(lock_fd,),
        start_new_session=True,
    )


def main() -> None:
    """Waits, then kills."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1):
        pass
    folder = Path(sys.argv[1])
    leftovers.kill(folder)
    for pod_folder in folder.glob("*"):
        scratch.remove_all(pod_folder)


if __name__ == "__main__":
    main()
