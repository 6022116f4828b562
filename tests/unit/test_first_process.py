"""SIGTERM while a container starts: its first process ends, though no handler is there yet."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support.waiting import wait_for

ROOT = Path(__file__).parents[2]
PROGRAMS = (
    "operator/terrace/controller/__main__.py",
    "operator/terrace/gateway/__main__.py",
    "runtime_image/terrace_runtime/__main__.py",
)
WAITING = "import terrace_runtime.first_process, time; print('up', flush=True); time.sleep(300)"
DEAF = "import time; print('up', flush=True); time.sleep(300)"


def started(code: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """A Python that is the first process of its namespace, once it has said that it is up."""
    argv = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", code]
    outer = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert outer.stdout is not None
    assert outer.stdout.readline() == "up\n"
    (inner,) = psutil.Process(outer.pid).children()
    return outer, inner


@pytest.mark.skipif(os.geteuid() != 0, reason="a process namespace needs root")
def test_the_first_process_of_a_container_ends_when_it_is_told_to_before_it_is_ready() -> None:
    outer, inner = started(WAITING)
    with outer:
        inner.send_signal(signal.SIGTERM)
        assert outer.wait(60) == 128 + signal.SIGTERM


@pytest.mark.skipif(os.geteuid() != 0, reason="a process namespace needs root")
def test_without_it_the_signal_is_lost() -> None:
    outer, inner = started(DEAF)
    with outer:
        inner.send_signal(signal.SIGTERM)
        status = Path(f"/proc/{inner.pid}/status")
        wait_for("the signal to be gone", lambda: "ShdPnd:\t0000000000000000" in status.read_text())
        assert outer.poll() is None
        outer.kill()


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_of_an_image_imports_it_first(program: str) -> None:
    tree = ast.parse((ROOT / program).read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    first = next(node for node in imports if getattr(node, "module", "") != "__future__")
    assert ast.unparse(first) == "import terrace_runtime.first_process"
