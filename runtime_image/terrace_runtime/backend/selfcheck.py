"""Does this build of llama.cpp run on this CPU? A child tries, so that a crash is an answer.

Owns: the check and the words for a child's death. Does not own: loading (``llama.py``). Run it as
``python -m terrace_runtime.backend.selfcheck``; ``check_build`` does so. Next: the engine's child
decodes its model's first batch by itself, and ``engine.process`` words its death with ``epitaph``;
when that fails, ``api.server`` calls ``check_build`` to tell a bad build from a bad model.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from terrace_runtime.backend import BackendError
from terrace_runtime.contract import EXIT_BACKEND, RuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

_TIMEOUT_S = 60.0
_LAST_WORDS = 500
_UNFIT_BUILD = (
    "this build of llama.cpp uses instructions that this CPU lacks or that its compiler got wrong. "
    'Rebuild it for any x86-64-v3 CPU: CMAKE_ARGS="-DGGML_NATIVE=OFF" pip install '
    "--force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python==0.3.36"
)
_HINTS = {
    signal.SIGILL: _UNFIT_BUILD,
    signal.SIGKILL: "out of memory, or someone killed it",
    signal.SIGABRT: "llama.cpp gave up; its last words are in the log",
    signal.SIGSEGV: "llama.cpp crashed",
    signal.SIGBUS: "a mapped file was cut short, or its volume failed",
}


def epitaph(returncode: int) -> str:
    """Why a child of ours ended, with the way out where there is one."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    number = signal.Signals(-returncode)
    hint = _HINTS.get(number)
    return f"was ended by {number.name}" + (f": {hint}" if hint else "")


def check_build(command: Sequence[str] | None = None, timeout_s: float = _TIMEOUT_S) -> None:
    """Decode one Q8_0 batch of the demo model in a child; raises BackendError with the way out.

    ``command`` stands in for the check itself in tests.
    """
    command = command or [sys.executable, "-m", "terrace_runtime.backend.selfcheck"]
    try:
        # No shell, no input of anybody's; the interpreter is the one that runs us.
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        message = f"llama.cpp did not decode one batch of the demo model in {timeout_s:g} s"
        raise BackendError(message) from error
    if done.returncode:
        words = done.stderr.strip()[-_LAST_WORDS:]
        reason = f"the check of llama.cpp {epitaph(done.returncode)}"
        raise BackendError(f"{reason} ({words})" if words else reason)


def main() -> int:
    """Load the demo model, which decodes one batch; returns an exit code."""
    from terrace_runtime.backend.llama import LlamaBackend  # noqa: PLC0415 - may kill the process

    # The demo model lies in this package, not in a volume of the pod.
    os.environ.pop("TERRACE_POD_ROOT", None)
    with as_file(files("terrace_runtime") / "demo" / "chat.gguf") as path:
        config = RuntimeConfig(
            model="selfcheck",
            served_names=("selfcheck",),
            model_path=str(path),
            model_digest="0" * 64,
            context_tokens=256,
            batch_tokens=32,
        )
        backend = LlamaBackend()
        try:
            backend.load(config)
        except BackendError as error:
            sys.stderr.write(f"{error}\n")
            return EXIT_BACKEND
        backend.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
