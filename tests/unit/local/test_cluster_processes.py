"""Daemon processes: started, recognised, ended, and never mistaken for others."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from terrace.local import processes, shutdown
from terrace.local.state import ClusterFolder

if TYPE_CHECKING:
    from pathlib import Path

    from terrace.local.state import ProcessRecord


def start(tmp_path: Path, script: str, **env: str) -> ProcessRecord:
    argv = ["/bin/sh", "-c", script]
    return processes.spawn(argv, tmp_path / "log", {"PATH": os.environ["PATH"], **env}, None)


def test_a_process_is_alive_until_it_is_stopped(tmp_path: Path) -> None:
    record = start(tmp_path, "exec sleep 60")
    assert processes.is_alive(record)
    processes.stop([record], grace_s=30)
    assert not processes.is_alive(record)


def test_it_leads_a_session_of_its_own_and_writes_its_log(tmp_path: Path) -> None:
    record = start(tmp_path, "echo out; echo err >&2; exec sleep 60")
    log = tmp_path / "log"
    assert processes.wait_until(lambda: log.read_text() == "out\nerr\n", 30)
    assert os.getsid(record.pid) == record.pid
    assert log.stat().st_mode & 0o777 == 0o600
    processes.stop([record], grace_s=30)


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    record = start(tmp_path, "trap '' TERM; echo ready; while :; do sleep 1; done")
    assert processes.wait_until(lambda: "ready" in (tmp_path / "log").read_text(), 30)
    processes.stop([record], grace_s=0.05)
    assert not processes.is_alive(record)


def test_one_that_ended_by_itself_is_gone_though_nobody_collected_it(tmp_path: Path) -> None:
    record = start(tmp_path, "exit 3")
    assert processes.wait_until(lambda: not processes.is_alive(record), 30)


def test_a_reused_pid_is_neither_alive_nor_killed(tmp_path: Path) -> None:
    bystander = start(tmp_path, "exec sleep 60")
    earlier = bystander.model_copy(update={"start_ticks": bystander.start_ticks - 1})
    other_boot = bystander.model_copy(update={"boot_id": "another"})
    assert not processes.is_alive(earlier)
    assert not processes.is_alive(other_boot)
    processes.stop([earlier, other_boot], grace_s=0.01)
    assert processes.is_alive(bystander)
    processes.stop([bystander], grace_s=30)


def test_a_pid_that_is_a_threads_by_now_is_nobody_to_stop() -> None:
    may_end = threading.Event()
    bystander = threading.Thread(target=may_end.wait)
    bystander.start()
    try:
        assert bystander.native_id
        ours = processes.record_of(os.getpid())
        ended = ours.model_copy(update={"pid": bystander.native_id})
        processes.stop([ended], grace_s=0.01)
        assert not processes.is_alive(ended)
    finally:
        may_end.set()
        bystander.join()


def test_what_carries_the_marker_is_found_without_a_record(tmp_path: Path) -> None:
    root = tmp_path / "cluster"
    marked = start(tmp_path, "exec sleep 60", TERRACE_CLUSTER_DIR=str(root))
    pod = start(tmp_path, "exec sleep 60", TERRACE_POD_ROOT=f"{root}/node/pods/1")
    foreign = start(tmp_path, "exec sleep 60", TERRACE_CLUSTER_DIR=f"{root}-two")
    found = processes.left_behind(root)
    assert {record.pid for record in found} == {marked.pid, pod.pid}
    assert set(found) == {marked, pod}
    processes.stop([marked, pod, foreign], grace_s=30)
    assert processes.left_behind(root) == []


SUCCEEDED = """
import os, signal, sys
def hand_on(*_):
    if left := int(sys.argv[1]):
        argv = [*sys.orig_argv[:-1], str(left - 1)]
        os.posix_spawn(argv[0], argv, os.environ, setsid=True, setsigmask=[signal.SIGTERM])
    os._exit(0)
signal.signal(signal.SIGTERM, hand_on)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
print("ready", flush=True)
while True: signal.pause()
"""


def test_a_stop_also_ends_what_is_started_by_what_it_ends(tmp_path: Path) -> None:
    folder = ClusterFolder(tmp_path / "cluster")
    folder.make()
    log = tmp_path / "log"
    argv = [sys.executable, "-I", "-S", "-c", SUCCEEDED, "3"]
    processes.spawn(argv, log, {"TERRACE_CLUSTER_DIR": str(folder.root)}, None)
    assert processes.wait_until(lambda: "ready" in log.read_text(), 30)
    shutdown.stop(folder, lambda _line: None)
    assert processes.left_behind(folder.root) == []


def test_a_process_that_hands_on_to_another_and_ends_is_never_out_of_sight(tmp_path: Path) -> None:
    root, is_over = tmp_path / "cluster", tmp_path / "over"
    hop = (
        'sleep 0.02; if [ "$1" = 0 ]; then touch "$OVER"; exit; fi; '
        'setsid /bin/sh -c "$2" sh "$(($1 - 1))" "$2" &'
    )
    env = {**os.environ, "TERRACE_CLUSTER_DIR": str(root), "OVER": str(is_over)}
    argv = ["/bin/sh", "-c", hop, "sh", "50", hop]
    processes.spawn(argv, tmp_path / "log", env, None)
    while not is_over.exists():
        assert processes.left_behind(root) or is_over.exists()
    assert processes.wait_until(lambda: not processes.left_behind(root), 30)


def test_a_process_name_with_spaces_and_parentheses_is_read_right(tmp_path: Path) -> None:
    program = tmp_path / "a) R (b"
    program.symlink_to("/bin/sleep")
    record = processes.spawn([str(program), "60"], tmp_path / "log", {}, None)
    assert record.start_ticks > 0
    assert processes.is_alive(record)
    os.kill(record.pid, signal.SIGKILL)
    assert processes.wait_until(lambda: not processes.is_alive(record), 30)
