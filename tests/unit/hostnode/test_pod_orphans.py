"""Nothing of a pod outlives its runner, however the runner ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support.waiting import wait_for
from terrace.local.pods import leftovers, processes

if TYPE_CHECKING:
    from pathlib import Path

# Starts a container whose processes do what they can to be forgotten, and says when it runs.
RUNNER = """
import asyncio, sys
from pathlib import Path
from support.host_pods import Bench, container, pod
from terrace.local.hostnode import owned
SCRIPT = '''
(setsid -f sleep 81); setsid sleep 82 & sleep 83 &
echo ready; exec sleep 84
'''
async def main(folder):
    one = Bench(folder).start(pod(container(SCRIPT)))
    log = one.log_folder() / "0.log"
    await one.until("it is up", lambda: log.exists() and b"ready" in log.read_bytes())
    print("up", flush=True)
    await one.over()
folder = Path(sys.argv[1])
with owned(folder):
    asyncio.run(main(folder))
"""


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


DEATH_SIGNAL = (
    "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
)


@pytest.mark.parametrize("prefix", [processes.death_signal_prefix(), processes.FALLBACK_PREFIX])
def test_the_kernel_kills_a_first_process_with_its_parent(prefix: tuple[str, ...]) -> None:
    command = [*prefix, sys.executable, "-I", "-S", "-c", DEATH_SIGNAL]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) == signal.SIGKILL


def test_a_killed_runner_takes_every_process_of_its_pods_along(tmp_path: Path) -> None:
    with start(tmp_path) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "up\n"
        assert len(processes.below(tmp_path / "pods")) >= 4
        runner.send_signal(signal.SIGKILL)
        runner.wait(60)
        wait_for("all are gone", lambda: not leftovers.find(tmp_path / "pods"), every=0.05)


def test_the_next_runner_kills_what_the_guard_did_not(tmp_path: Path) -> None:
    environment = {**os.environ, processes.POD_ROOT: f"{tmp_path}/pods/u/containers/c/root"}
    with subprocess.Popen(["sleep", "85"], env=environment) as stray, start(tmp_path) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "up\n"
        assert stray.wait(60) == -signal.SIGKILL
        runner.send_signal(signal.SIGKILL)
        runner.wait(60)
        wait_for("all are gone", lambda: not leftovers.find(tmp_path / "pods"), every=0.05)


def test_a_recorded_process_is_found_though_it_forgot_its_environment(tmp_path: Path) -> None:
    folder = tmp_path / "pods"
    with subprocess.Popen(["sleep", "86"], env={}, start_new_session=True) as process:
        leftovers.record(folder / "u" / "containers" / "c", process.pid)
        assert process.pid in leftovers.find(folder)
        assert leftovers.kill(folder) == 1
        process.wait(60)


def test_a_record_of_an_ended_process_means_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "pods"
    record = folder / "u" / "containers" / "c" / "process.json"
    with subprocess.Popen(["sleep", "87"], start_new_session=True) as process:
        leftovers.record(record.parent, process.pid)
        record.write_text(record.read_text().replace('"start_ticks": ', '"start_ticks": 1'))
        assert leftovers.find(folder) == set()
        process.kill()
