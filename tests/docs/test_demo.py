"""``make demo KEEP=1``, the first command of the README, does what it and the quickstart say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.pages import ROOT

if TYPE_CHECKING:
    from pathlib import Path

TERRACE = [sys.executable, "-m", "terrace.cli"]


def run(command: list[str], environ: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def recipe(*variables: str) -> str:
    """What make would run at last."""
    return run(["make", "-n", "--no-print-directory", "demo", *variables], {**os.environ}).strip()


def test_make_runs_the_program_that_the_next_test_runs() -> None:
    assert recipe().endswith("-m terrace.cli demo")
    assert recipe("KEEP=1").endswith("-m terrace.cli demo --keep")


@pytest.mark.timeout(600)
def test_the_demo_answers_says_how_to_go_on_and_goes_when_told(tmp_path: Path) -> None:
    name = f"docs-demo-{os.getpid()}"
    environ = os.environ | {"XDG_STATE_HOME": str(tmp_path)}
    try:
        said = run([*TERRACE, "demo", "--keep", "--name", name], environ)
        assert re.search(r"Ready +True Ready: 1 of 1 replicas ready", said)
        assert re.search(r"==> Ask through the gateway: .*\n +A pod is .*container", said)
        exports = re.findall(r"^  export (.+)$", said, re.MULTILINE)
        assert len(exports) == 3
        # The shell of a reader, who has nothing else in it.
        shell = "".join(f"export {each}; " for each in exports)
        ask = re.search(r"^  (curl (?:.*\\\n)*.*)$", said, re.MULTILINE)
        assert ask
        bare = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        answered = run(["bash", "-ec", f"{shell} kubectl get im demo -o name; {ask[1]}"], bare)
        assert answered.startswith("inferencemodel.terrace.dev/demo")
        assert answered.rstrip().endswith("data: [DONE]")
    finally:
        run([*TERRACE, "local", "down", "--name", name], environ)
    assert name not in run([*TERRACE, "local", "status"], environ)
