"""A small image made here: one static Go program, packed without any image builder."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from terrace.local.build import find_go
from terrace.local.kubelets import oci

IMAGE = "localhost/terrace/test-program:1"
_SOURCE = Path(__file__).parent.parent / "kubelet" / "program"


def tiny_image(folder: Path) -> Path:
    """An OCI archive of the program in ``tests/kubelet/program`` as its entry point."""
    archive = folder / "program.tar"
    config = {"User": "65532:65532", "WorkingDir": "/"}
    oci.pack(archive, IMAGE, {"/program": program()}, ["/program"], config)
    return archive


def program() -> Path:
    """Built once for each content of its sources."""
    sources = sorted(_SOURCE.iterdir())
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "terrace"
    built = cache / "tests" / f"program-{digest}"
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        partial = built.with_name(f".{built.name}.{os.getpid()}")
        command = [str(find_go(cache / "k8s", print)), "build", "-trimpath", "-ldflags", "-s -w",
                   "-o", str(partial), "."]  # fmt: skip
        env = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": ""}
        subprocess.run(command, cwd=_SOURCE, env=env, check=True, timeout=600)
        partial.replace(built)
    return built


if __name__ == "__main__":
    program()  # before tests with their time limits
