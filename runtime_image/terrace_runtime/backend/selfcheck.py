"""Does this build of llama.cpp run on this CPU? A child tries, so that a crash is an answer.

Owns: the checks and the words for a child's death. Does not own: loading (``llama.py``). Run it as
``python -m terrace_runtime.backend.selfcheck [MODEL PROJECTOR]``; ``check_build`` and
``check_projector`` do so. Next: the engine's child decodes its model's first batch by itself, and
``engine.process`` words its death with ``epitaph``; when that fails, ``api.server`` calls both to
tell a bad build from a bad projector and a bad model.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from terrace_runtime.backend import BackendError
from terrace_runtime.contract import EXIT_BACKEND, RuntimeConfig, pod_path

if TYPE_CHECKING:
    from collections.abc import Sequence

_TIMEOUT_S = 60.0
_PROJECTOR_TIMEOUT_S = 120.0
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
    _run(
        command or [sys.executable, "-m", "terrace_runtime.backend.selfcheck"],
        timeout_s,
        "the check of llama.cpp",
        f"llama.cpp did not decode one batch of the demo model in {timeout_s:g} s",
    )


def check_projector(config: RuntimeConfig, timeout_s: float = _PROJECTOR_TIMEOUT_S) -> None:
    """Open the projector of ``config`` in a child and encode an image; raises BackendError.

    It stands beside the model's vocabulary alone, so that no weights of the model are read.
    """
    module = "terrace_runtime.backend.selfcheck"
    _run(
        [sys.executable, "-m", module, config.model_path, config.projector_path],
        timeout_s,
        f"opening the projector {config.projector_path}",
        f"the projector {config.projector_path} encoded no image in {timeout_s:g} s",
    )


def _run(command: Sequence[str], timeout_s: float, what: str, too_slow: str) -> None:
    try:
        # No shell, no input of anybody's; the interpreter is the one that runs us.
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BackendError(too_slow) from error
    if done.returncode:
        words = done.stderr.strip()[-_LAST_WORDS:]
        reason = f"{what} {epitaph(done.returncode)}"
        raise BackendError(f"{reason} ({words})" if words else reason)


def main(paths: Sequence[str] = ()) -> int:
    """Load the demo model, which decodes one batch; returns an exit code.

    With ``paths``, those of a model and a projector in the pod: open the projector.
    """
    from terrace_runtime.backend.llama import (  # noqa: PLC0415 - may kill the process
        LlamaBackend,
        try_projector,
    )

    if paths:
        model, projector = map(pod_path, paths)
        try:
            try_projector(model, projector)
        except BackendError as error:
            sys.stderr.write(f"{error}\n")
            return EXIT_BACKEND
        return 0
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
    sys.exit(main(sys.argv[1:]))
