"""Ending the containers of a pod: grace, hooks, memory, deadlines, and nobody left behind."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from support.host_pods import container, pod

if TYPE_CHECKING:
    from support.host_pods import Bench, Started


async def running(one: Started) -> None:
    await one.until("it runs", lambda: "running" in one.container()["state"])


async def test_sigterm_goes_to_the_first_process_and_grace_lets_it_finish(bench: Bench) -> None:
    script = 'trap "echo drained; exit 0" TERM; echo ready; while :; do sleep 0.02; done'
    one = bench.start(pod(container(script)))
    await running(one)
    log = one.log_folder() / "0.log"
    await one.until("its trap is set", lambda: b"ready" in log.read_bytes())
    await one.runner.stop(60.0)
    await one.over()
    assert await one.logs() == "ready\ndrained\n"
    assert one.terminated["exitCode"] == 0


async def test_a_container_that_ignores_sigterm_is_killed_after_its_grace(bench: Bench) -> None:
    one = bench.start(pod(container('trap "" TERM; echo ready; while :; do sleep 0.02; done')))
    await running(one)
    log = one.log_folder() / "0.log"
    await one.until("its trap is set", lambda: b"ready" in log.read_bytes())
    began = time.monotonic()
    await one.runner.stop(0.3)  # the pod's own is two hundred times as long
    await one.over()
    assert 0.3 <= time.monotonic() - began < 30
    assert one.terminated["exitCode"] == 137


async def test_a_shorter_grace_overtakes_a_longer_one(bench: Bench) -> None:
    one = bench.start(pod(container('trap "" TERM; while :; do sleep 0.02; done')))
    await running(one)
    patient = asyncio.create_task(one.runner.stop(60.0))
    await one.until("it is being stopped", lambda: "Killing" in one.reasons())
    await one.runner.stop(0.0)
    await asyncio.wait_for(patient, 30)
    await one.over()


async def test_pre_stop_runs_before_sigterm(bench: Bench) -> None:
    hook = {"exec": {"command": ["/bin/sh", "-c", 'echo hook > "$TERRACE_POD_ROOT/tmp/f"']}}
    script = (
        "trap 'cat \"$TERRACE_POD_ROOT/tmp/f\"; exit 0' TERM; echo up; while :; do sleep 0.02; done"
    )
    one = bench.start(pod(container(script, lifecycle={"preStop": hook})))
    await running(one)
    log = one.log_folder() / "0.log"
    await one.until("its trap is set", lambda: b"up" in log.read_bytes())
    await one.runner.stop(60.0)
    await one.over()
    assert await one.logs() == "up\nhook\n"


async def test_a_failed_post_start_hook_ends_the_container(bench: Bench) -> None:
    hook = {"exec": {"command": ["/bin/sh", "-c", "echo no; exit 4"]}}
    one = await bench.run(pod(container(lifecycle={"postStart": hook})))
    assert one.terminated["exitCode"] == 143
    assert "exited with 4: no" in one.message_of("FailedPostStartHook")


async def test_children_and_escaped_daemons_end_with_their_container(bench: Bench) -> None:
    script = "sleep 61 & setsid sleep 62 & (setsid -f sleep 63); sleep 0.1; exit 0"
    one = await bench.run(pod(container(script)))
    assert one.terminated["exitCode"] == 0
    assert one.pids() == set()


async def test_a_child_that_keeps_the_pipe_open_does_not_hold_the_end_back(bench: Bench) -> None:
    began = time.monotonic()
    one = await bench.run(pod(container("echo hi; sleep 600 & exit 0")))
    assert await one.logs() == "hi\n"
    assert time.monotonic() - began < 60


async def test_memory_over_the_limit_is_oom_killed(bench: Bench) -> None:
    script = "import time; x = bytearray(80 << 20); time.sleep(60)"
    resources = {"limits": {"memory": "40Mi"}}
    one = await bench.run(
        pod(container(script, image="test/py", resources=resources)), memory_interval_s=0.02
    )
    assert (one.terminated["exitCode"], one.terminated["reason"]) == (137, "OOMKilled")


async def test_memory_of_children_counts_and_under_the_limit_nothing_happens(
    bench: Bench,
) -> None:
    child = "import time; x = bytearray(50 << 20); time.sleep({})"
    script = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {!r}]))"
    limited = {"image": "test/py", "resources": {"limits": {"memory": "40Mi"}}}
    fine = container("x = bytearray(1 << 20); import time; time.sleep(0.2)", **limited)
    over = container(script.format(child.format(60)), **limited)
    one = await bench.run(pod(fine), memory_interval_s=0.02)
    two = await bench.run(pod(over), memory_interval_s=0.02)
    assert one.terminated["reason"] == "Completed"
    assert two.terminated["reason"] == "OOMKilled"


async def test_the_pods_deadline_ends_it_as_failed(bench: Bench) -> None:
    one = await bench.run(pod(container(), activeDeadlineSeconds=0.2, restartPolicy="Always"))
    assert (one.status["phase"], one.status["reason"]) == ("Failed", "DeadlineExceeded")


async def test_stopping_a_pod_that_waits_ends_it_at_once(bench: Bench) -> None:
    one = bench.start(pod(container(image="nowhere/none"), restartPolicy="Always"))
    await one.until("it waits", lambda: "waiting" in one.container()["state"])
    await one.runner.stop(30.0)
    assert (await one.over())["phase"] == "Failed"
