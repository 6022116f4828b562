"""The variables of a process are read right, also while it executes another program."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from terrace.local import processes
from terrace.local.environment import variables_of

MARK = b"TERRACE_CLUSTER_DIR=/here"
# Executes itself many times, so that a reader often meets it between two programs.
AGAIN = 'if [ "$1" -gt 0 ]; then exec /bin/sh -c "$2" sh "$(($1 - 1))" "$2"; fi; exec sleep 60'


@pytest.mark.parametrize(("num_others", "num_execs"), [(0, 200), (2000, 200), (8000, 100)])
def test_a_process_that_executes_another_program_is_never_without_variables(
    tmp_path: Path, num_others: int, num_execs: int
) -> None:
    argv = ["/bin/sh", "-c", AGAIN, "sh", str(num_execs), AGAIN]
    # With many, a reader often comes when the arguments are in place and the variables are not,
    # or has read some when the next program begins.
    others = {f"OTHER_{number}": "" for number in range(num_others)}
    env = {"TERRACE_CLUSTER_DIR": "/here", **others}
    record = processes.spawn(argv, tmp_path / "log", env, None)
    name = Path(f"/proc/{record.pid}/comm")
    while name.read_text() != "sleep\n":
        assert MARK in variables_of(record.pid)
    processes.stop([record], grace_s=5)


def test_a_process_without_variables_has_none(tmp_path: Path) -> None:
    record = processes.spawn(["/bin/sleep", "60"], tmp_path / "log", {}, None)
    assert variables_of(record.pid) == [b""]
    processes.stop([record], grace_s=5)


def test_one_that_ended_has_none() -> None:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {"A": "1"})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert variables_of(pid) == []
    os.waitpid(pid, 0)
    assert variables_of(pid) == []
