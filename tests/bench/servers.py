"""The servers of a comparison, as processes of this machine on free loopback ports.

Owns: their command lines for the same work (same file, same total context, same threads, f16 keys
and values), waiting until they answer, ending them. Does not own: load (``load.py``), comparing
(``comparison.py``). The peer has several ways to be started (``VARIANTS``): it is up to the
comparison to find the one that serves a case best.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.builds import llama_site
from bench.peer import peer_programs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

HOST = "127.0.0.1"
MODEL_NAME = "bench"
HOST_TIER_BYTES = 2 << 30
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "auto": (),
    "np": ("-np", "{streams}"),
    "np-kvu": ("-np", "{streams}", "-kvu"),
    "auto-reuse": ("--cache-reuse", "64"),
    "np-reuse": ("-np", "{streams}", "--cache-reuse", "64"),
    "one": ("-np", "1"),
}
"""llama-server's flags beyond the common ones. ``auto`` is how it starts when told nothing."""
BEST = ("np", "auto", "np-kvu", "np-reuse", "auto-reuse")
"""The variants of which the best one counts; the quick search tries the first two."""
_START_S = 120
_POLL_S = 0.05
_END_S = 60


class ServerError(Exception):
    """A server did not come up; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Setting:
    """What both servers are told."""

    model: Path
    streams: int
    context_tokens: int
    """Per stream; both get ``streams`` times as much in all."""
    threads: int = 2
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of our RuntimeConfig that the case is about."""


@contextlib.contextmanager
def terrace(setting: Setting, folder: Path, *, unified: bool = False) -> Iterator[int]:
    """Run our runtime and give its port."""
    kv = {"host_bytes": HOST_TIER_BYTES, **setting.changes.get("kv", {})}
    config = {
        "model": MODEL_NAME,
        "served_names": [MODEL_NAME],
        "model_path": str(setting.model),
        "model_digest": _digest(setting.model),
        "context_tokens": setting.context_tokens,
        "parallel": setting.streams,
        "threads": setting.threads,
        "kv_unified": unified,
        # What a plan has unless a user chose a layout.
        "kv_auto": not unified,
        **setting.changes,
        "kv": kv,
    }
    path = folder / "runtime.json"
    path.write_text(json.dumps(config))
    port = _free_port()
    argv = [sys.executable, "-m", "terrace_runtime", "serve", "--host", HOST, "--port", str(port)]
    argv += ["--config", str(path)]
    site = {"PYTHONPATH": str(llama_site())}
    with _running(argv, port, "/readyz", folder / "terrace.log", site):
        yield port


@contextlib.contextmanager
def llama_server(setting: Setting, folder: Path, variant: str = "np") -> Iterator[int]:
    """Run the peer, started in one of VARIANTS, and give its port."""
    port = _free_port()
    flags = variant_flags(variant, setting).split()
    options = {
        "-m": str(setting.model),
        "--host": HOST,
        "--port": str(port),
        "-c": str(setting.streams * setting.context_tokens),
        "-t": str(setting.threads),
        "-tb": str(setting.threads),
        "-fa": "on",
    }
    common = [part for pair in options.items() for part in pair]
    argv = [str(peer_programs() / "llama-server"), *common, *flags]
    with _running(argv, port, "/health", folder / "llama-server.log"):
        yield port


def variant_flags(variant: str, setting: Setting) -> str:
    """The flags of one of VARIANTS."""
    return " ".join(VARIANTS[variant]).format(streams=setting.streams)


def engine_report(port: int) -> dict[str, Any]:
    """What ``GET /v1/runtime`` of ours says of its tiers, speculation and sequences."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/v1/runtime", timeout=10) as answer:
        report: dict[str, Any] = json.load(answer)["engine"]
    return report


@functools.cache
def _digest(model: Path) -> str:
    with model.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(
    argv: Sequence[str],
    port: int,
    ready_path: str,
    log: Path,
    changes: Mapping[str, str] | None = None,
) -> Iterator[None]:
    # Our own PYTHONPATH finds tests/; a server must run as it does for users.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= changes or {}
    with log.open("wb") as sink:
        process = subprocess.Popen(argv, stdout=sink, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait_until_ready(process, f"http://{HOST}:{port}{ready_path}", log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(url, timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(_POLL_S)
    how = f"ended with {process.returncode}" if process.poll() is not None else "is not ready"
    tail = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
    raise ServerError(f"{log.stem} {how} after start: {tail}")
