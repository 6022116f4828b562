"""A replica as a process: ``terrace_runtime serve`` in a pod's folder on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from terrace_runtime.contract import RuntimeConfig

SERVE = (sys.executable, "-m", "terrace_runtime", "serve", "--host", "127.0.0.1", "--port", "0")


def pod_folder(folder: Path) -> Path:
    """Make the folders that a pod has."""
    for name in ("dev", "etc/terrace", "models"):
        (folder / name).mkdir(parents=True)
    return folder


def last_words(pod: Path) -> str:
    """What the runtime wrote for Kubernetes when it ended."""
    return (pod / "dev" / "termination-log").read_text()


@dataclass
class Replica:
    """A serving process in a pod's folder."""

    process: subprocess.Popen[str]
    pod: Path
    port: int

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return 0

    def get(self, path: str) -> bytes:
        """Body of a successful answer."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as reply:
            body: bytes = reply.read()
        return body

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        return self.status("/readyz") == 200

    def log(self) -> str:
        return (self.pod / "log").read_text()

    def engine_pid(self) -> int:
        return wait_for("an engine child", self._engine_pid, every=0.01)

    def _engine_pid(self) -> int:
        assert self.process.poll() is None, self.log()
        # By the parent of each: the children of a thread that ends just then are under no thread.
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                if "engine" in child.cmdline():
                    return child.pid
        return 0


@contextlib.contextmanager
def serving(
    pod: Path, config: RuntimeConfig, *, wrapper: Sequence[str] = (), **environment: str
) -> Iterator[Replica]:
    """Start a replica and wait for its port; ``wrapper`` goes before its command line."""
    (pod / "etc/terrace/runtime.json").write_text(config.model_dump_json())
    with (pod / "log").open("w") as log:
        process = subprocess.Popen(
            [*wrapper, *SERVE],
            env={**os.environ, "TERRACE_POD_ROOT": str(pod), **environment},
            stdout=log,
            stderr=log,
            text=True,
        )
    replica = Replica(process, pod, 0)
    try:
        replica.port = wait_for(
            "a listening line", lambda: listening_port(replica), 200, every=0.02
        )
        yield replica
    finally:
        process.kill()
        process.wait()


def listening_port(replica: Replica) -> int:
    """Its port once it has told it, though it may have ended since; 0: not yet."""
    is_alive = replica.process.poll() is None
    lines = replica.log().splitlines(keepends=True)
    events = [json.loads(one) for one in lines if one.startswith("{") and one.endswith("\n")]
    port = next((int(event["port"]) for event in events if event["event"] == "listening"), 0)
    assert port or is_alive, replica.log()
    return port
