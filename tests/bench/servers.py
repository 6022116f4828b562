"""The two servers of a comparison, as processes of this machine on free loopback ports.

Owns: their command lines for the same work (same file, same context per slot, same threads, f16
keys and values, split cache), waiting until they answer, ending them. Does not own: load
(``load.py``), comparing (``engine.py``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.peer import peer_programs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

HOST = "127.0.0.1"
MODEL_NAME = "bench"
_START_S = 60
_POLL_S = 0.1


class ServerError(Exception):
    """A server did not come up; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Setting:
    """What both servers are told."""

    model: Path
    streams: int
    context_tokens: int
    """Per stream."""
    threads: int = 2


@contextlib.contextmanager
def terrace(setting: Setting, folder: Path, **overrides: object) -> Iterator[int]:
    """Run our runtime and give its port; ``overrides`` are further fields of RuntimeConfig."""
    with setting.model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = {
        "model": MODEL_NAME,
        "served_names": [MODEL_NAME],
        "model_path": str(setting.model),
        "model_digest": digest,
        "context_tokens": setting.context_tokens,
        "parallel": setting.streams,
        "threads": setting.threads,
        "kv_unified": False,
        **overrides,
    }
    path = folder / "runtime.json"
    path.write_text(json.dumps(config))
    port = _free_port()
    argv = [sys.executable, "-m", "terrace_runtime", "serve", "--host", HOST, "--port", str(port)]
    with _running([*argv, "--config", str(path)], port, "/readyz", folder / "terrace.log"):
        yield port


@contextlib.contextmanager
def llama_server(setting: Setting, folder: Path) -> Iterator[int]:
    """Run the peer and give its port."""
    port = _free_port()
    options = {
        "-m": str(setting.model),
        "--host": HOST,
        "--port": str(port),
        "-np": str(setting.streams),
        "-c": str(setting.streams * setting.context_tokens),
        "-t": str(setting.threads),
        "-tb": str(setting.threads),
        "-fa": "on",
        "--cache-ram": "0",
    }
    argv = [
        str(peer_programs() / "llama-server"),
        *(part for pair in options.items() for part in pair),
    ]
    with _running(argv, port, "/health", folder / "llama-server.log"):
        yield port


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(argv: Sequence[str], port: int, ready_path: str, log: Path) -> Iterator[None]:
    # Our own PYTHONPATH finds tests/; a server must run as it does for users.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with log.open("wb") as sink:
        process = subprocess.Popen(argv, stdout=sink, stderr=subprocess.STDOUT, env=environment)
    try:
        _wait_until_ready(process, f"http://{HOST}:{port}{ready_path}", log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
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
