"""Starting and restarting the containers of a pod."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.host_pods import IMAGES, container, pod
from terrace.local.pods.images import ImageMap

if TYPE_CHECKING:
    from support.host_pods import Bench, Started


async def running(one: Started) -> None:
    await one.until("it runs", lambda: "running" in one.container()["state"])


async def test_a_pod_whose_container_exits_0_succeeds(bench: Bench) -> None:
    one = await bench.run(pod(container("true")))
    assert one.status["phase"] == "Succeeded"
    assert (one.terminated["exitCode"], one.terminated["reason"]) == (0, "Completed")
    assert one.conditions() == {
        "PodScheduled": "True",
        "Initialized": "True",
        "ContainersReady": "False",
        "Ready": "False",
    }


async def test_exit_codes_and_signals_are_reported(bench: Bench) -> None:
    one = await bench.run(pod(container("exit 10")))
    assert (one.terminated["exitCode"], one.terminated["reason"]) == (10, "Error")
    assert one.status["phase"] == "Failed"
    two = await bench.run(pod(container("kill -USR1 $$$$")))
    assert two.terminated["exitCode"] == 128 + 10


async def test_the_termination_message_is_the_end_of_its_file(bench: Bench) -> None:
    log = '"$TERRACE_POD_ROOT/dev/termination-log"'
    one = await bench.run(
        pod(container(f"yes 12345678 | head -c 9000 > {log}; printf END >> {log}"))
    )
    assert len(one.terminated["message"]) == 4096
    assert one.terminated["message"].endswith("5678\nEND")


async def test_a_failed_container_falls_back_to_its_log_where_the_policy_says_so(
    bench: Bench,
) -> None:
    policy = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    one = await bench.run(pod(container("echo one; echo two >&2; sleep 0.05; exit 1", **policy)))
    assert set(one.terminated["message"].splitlines()) == {"one", "two"}
    two = await bench.run(pod(container("echo fine", **policy)))
    assert "message" not in two.terminated


async def test_a_termination_log_replaced_by_a_link_is_not_read(bench: Bench) -> None:
    one = await bench.run(
        pod(container('ln -sf /etc/passwd "$TERRACE_POD_ROOT/dev/termination-log"'))
    )
    assert "message" not in one.terminated


async def test_init_containers_run_one_after_another_before_the_rest(bench: Bench) -> None:
    mounts = [{"name": "v", "mountPath": "/v"}]
    write = 'sleep 0.05; echo {} >> "$TERRACE_POD_ROOT/v/f"'
    first = container(write.format(1), name="first", volumeMounts=mounts)
    second = container(write.format(2), name="second", volumeMounts=mounts)
    main = container('cat "$TERRACE_POD_ROOT/v/f"', volumeMounts=mounts)
    manifest = pod(main, initContainers=[first, second], volumes=[{"name": "v", "emptyDir": {}}])
    one = await bench.run(manifest)
    assert await one.logs() == "1\n2\n"
    assert one.status["phase"] == "Succeeded"


async def test_a_failed_init_container_fails_a_pod_that_never_restarts(bench: Bench) -> None:
    one = await bench.run(pod(container("true"), initContainers=[container("exit 3", name="i")]))
    assert one.status["phase"] == "Failed"
    assert one.container("c")["state"]["waiting"]["reason"] == "PodInitializing"
    assert one.conditions()["Initialized"] == "False"


async def test_a_failed_init_container_is_tried_again_where_the_policy_allows(
    bench: Bench,
) -> None:
    mounts = [{"name": "v", "mountPath": "/v"}]
    script = 'cd "$TERRACE_POD_ROOT/v"; [ -e f ] || { touch f; exit 1; }'
    init = container(script, name="i", volumeMounts=mounts)
    manifest = pod(
        container("true"),
        initContainers=[init],
        volumes=[{"name": "v", "emptyDir": {}}],
        restartPolicy="OnFailure",
    )
    one = await bench.run(manifest)
    assert one.status["phase"] == "Succeeded"
    assert one.container("i")["restartCount"] == 1


async def test_a_sidecar_starts_before_the_main_container_and_ends_after_it(bench: Bench) -> None:
    mounts = [{"name": "v", "mountPath": "/v"}]
    sidecar = container(
        'cd "$TERRACE_POD_ROOT/v"; trap "echo ended; exit 0" TERM; echo up > f; '
        "while :; do sleep 0.02; done",
        name="side",
        restartPolicy="Always",
        volumeMounts=mounts,
        startupProbe={
            "exec": {"command": ["/bin/sh", "-c", 'test -e "$TERRACE_POD_ROOT/v/f"']},
            "periodSeconds": 0.05,
            "failureThreshold": 10_000,
        },
    )
    main = container('cat "$TERRACE_POD_ROOT/v/f"', volumeMounts=mounts)
    manifest = pod(main, initContainers=[sidecar], volumes=[{"name": "v", "emptyDir": {}}])
    one = await bench.run(manifest)
    assert await one.logs() == "up\n"
    assert await one.logs("side") == "ended\n"
    assert one.status["phase"] == "Succeeded"


async def test_a_container_that_fails_is_restarted_with_growing_pauses(bench: Bench) -> None:
    one = bench.start(pod(container("exit 1"), restartPolicy="Always"), backoff_base_s=0.1)
    await one.until("it backs off", lambda: one.container()["restartCount"] >= 3)
    back_off = [message for reason, message in one.events if reason == "BackOff"]
    assert back_off[0] == "Back-off restarting failed container c (exit code 1)"
    states = [status["containerStatuses"][0]["state"] for status in one.statuses]
    waiting = [state["waiting"] for state in states if "waiting" in state]
    pauses = [each["message"] for each in waiting if each["reason"] == "CrashLoopBackOff"]
    assert pauses[0].startswith("back-off 0.1s restarting failed container=c pod=")
    assert any(each.startswith("back-off 0.2s") for each in pauses)
    assert one.container()["lastState"]["terminated"]["exitCode"] == 1


async def test_restart_policy_on_failure_ends_with_the_first_success(bench: Bench) -> None:
    mounts = [{"name": "v", "mountPath": "/v"}]
    script = 'cd "$TERRACE_POD_ROOT/v"; [ -e f ] || { touch f; exit 1; }'
    manifest = pod(
        container(script, volumeMounts=mounts),
        restartPolicy="OnFailure",
        volumes=[{"name": "v", "emptyDir": {}}],
    )
    one = await bench.run(manifest)
    assert (one.status["phase"], one.container()["restartCount"]) == ("Succeeded", 1)


async def test_the_log_before_a_restart_is_kept_and_older_ones_are_not(bench: Bench) -> None:
    one = bench.start(pod(container("echo run; exit 1"), restartPolicy="Always"))
    await one.until("two restarts", lambda: one.container()["restartCount"] >= 2)
    await one.runner.stop(0.0)
    await one.over()
    count = one.container()["restartCount"]
    assert await one.logs(run=count - 1) == "run\n"
    assert not (one.log_folder() / f"{count - 2}.log").exists()


async def test_an_unknown_image_is_told_with_the_known_ones(bench: Bench) -> None:
    one = bench.start(pod(container(image="docker.io/library/nginx:1.27")))
    await one.until("it gives up", lambda: len(one.statuses) >= 2)
    reasons = {
        status["containerStatuses"][0]["state"]["waiting"]["reason"] for status in one.statuses
    }
    assert reasons <= {"ErrImagePull", "ImagePullBackOff", "ContainerCreating"}
    assert "Known images: test/py, test/sh" in one.message_of("Failed")
    assert one.status["phase"] == "Pending"


async def test_an_image_added_to_the_map_later_is_run(bench: Bench) -> None:
    images = {"known": ImageMap({})}
    one = bench.start(pod(container()), images=lambda: images["known"])
    await one.until("it is refused", lambda: "Failed" in one.reasons())
    images["known"] = IMAGES
    await running(one)


async def test_a_full_disk_holds_a_container_back_and_says_so(bench: Bench) -> None:
    (bench.folder / "pods").write_text("not a folder: nothing can be written below it")
    one = bench.start(pod(container()))
    await one.until("it says so", lambda: "Failed" in one.reasons())
    assert "Not a directory" in one.message_of("Failed")
    await one.runner.stop(0.0)
    assert (await one.over())["phase"] == "Failed"
    (bench.folder / "pods").unlink()


async def test_a_draining_container_is_not_ended_early_by_its_liveness_probe(
    bench: Bench,
) -> None:
    script = (
        "trap 'rm \"$TERRACE_POD_ROOT/tmp/up\"; sleep 0.5; echo drained; exit 0' TERM; "
        'touch "$TERRACE_POD_ROOT/tmp/up"; while :; do sleep 0.02; done'
    )
    test = {"command": ["/bin/sh", "-c", 'test -e "$TERRACE_POD_ROOT/tmp/up"']}
    probe = {"exec": test, "periodSeconds": 0.05, "timeoutSeconds": 60, "failureThreshold": 1}
    fast = {**probe, "terminationGracePeriodSeconds": 0}
    startup = {**probe, "failureThreshold": 10_000}
    one = bench.start(pod(container(script, livenessProbe=fast, startupProbe=startup)))
    await one.until("it started", lambda: one.container()["started"])
    await one.runner.stop(60.0)
    await one.over()
    assert await one.logs() == "drained\n"


async def test_a_command_that_does_not_exist_is_a_start_error(bench: Bench) -> None:
    one = await bench.run(pod(container(command=["no-such-command"])))
    assert (one.terminated["exitCode"], one.terminated["reason"]) == (128, "StartError")
    assert "executable file not found in $PATH" in one.terminated["message"]


async def test_a_pod_taken_over_from_a_killed_agent_counts_the_restart(bench: Bench) -> None:
    manifest = pod(container(), restartPolicy="Always")
    one = bench.start(manifest)
    await running(one)
    left = manifest | {"status": one.status}
    await one.runner.stop(0.0)
    await one.over()
    two = bench.start(left)
    await running(two)
    assert two.container()["restartCount"] == 1
    assert two.container()["lastState"]["terminated"]["exitCode"] == 137
    assert two.status["startTime"] == one.status["startTime"]


async def test_a_pod_that_never_restarts_is_failed_when_its_agent_was_killed(
    bench: Bench,
) -> None:
    manifest = pod(container())
    one = bench.start(manifest)
    await running(one)
    left = manifest | {"status": one.status}
    await one.runner.stop(0.0)
    await one.over()
    two = await bench.run(left)
    assert two.status["phase"] == "Failed"
    assert "the host node's agent ended" in two.terminated["message"]


async def test_security_settings_that_have_no_effect_are_told(bench: Bench) -> None:
    context = {"runAsUser": 65532, "readOnlyRootFilesystem": True}
    one = await bench.run(pod(container("true", securityContext=context)))
    assert one.message_of("NotEnforced") == (
        "runs as plain host processes of the node agent's user; not enforced: "
        "securityContext.readOnlyRootFilesystem, securityContext.runAsUser"
    )


async def test_two_containers_of_a_pod_share_its_address(bench: Bench) -> None:
    env = [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    manifest = pod(
        container('echo "$IP"', name="a", env=env), container('echo "$IP"', name="b", env=env)
    )
    one = await bench.run(manifest)
    assert await one.logs("a") == await one.logs("b") == one.status["podIP"] + "\n"
