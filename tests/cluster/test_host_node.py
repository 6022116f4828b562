"""The host node on a real control plane: pods, logs, volumes, ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from support.clusters import cluster_name
from support.host_node import Json, Node, container, pod
from support.waiting import wait_for
from terrace.local.cluster import LocalCluster
from terrace.local.pods import leftovers
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, kubernetes: str | None) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("host-node")
    images = folder / "images.json"
    images.write_text(
        json.dumps({"test/sh": ["/bin/sh", "-c"], "test/py": [sys.executable, "-u", "-c"]})
    )
    options = ClusterOptions(
        fsync=False,
        audit=True,
        emulated_version=kubernetes,
        images=str(images),
        extra_args={"node": ("--backoff=0.5", "--refresh=0.5")},
    )
    cluster = LocalCluster(cluster_name("node"), directory=folder / "c", options=options)
    cluster.up()
    try:
        yield Node(cluster)
    finally:
        cluster.down()


SERVER = """
import http.server, os, pathlib
root = pathlib.Path(os.environ["TERRACE_POD_ROOT"])
print((root / "etc/app/greeting").read_text())
account = root / "var/run/secrets/kubernetes.io/serviceaccount"
print(sorted(path.name for path in account.iterdir() if path.name[0] != "."))
http.server.HTTPServer(("$(POD_IP)", 8000), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def test_the_node_says_what_it_is_and_what_the_machine_has(node: Node) -> None:
    found = node.get("node", "host")
    assert found["metadata"]["labels"]["terrace.dev/host-node"] == "true"
    assert found["metadata"]["labels"]["kubernetes.io/hostname"] == "host"
    assert int(found["status"]["capacity"]["cpu"]) == len(os.sched_getaffinity(0))
    assert found["status"]["nodeInfo"]["containerRuntimeVersion"].startswith("terrace-host-process")
    ready = next(one for one in found["status"]["conditions"] if one["type"] == "Ready")
    assert ready["status"] == "True"
    assert "no kubelet" in ready["message"]


def test_a_pod_with_config_probe_and_token_becomes_ready_and_logs(node: Node) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "greeting"},
        "data": {"greeting": "hello"},
    }
    server = container(
        SERVER,
        image="test/py",
        env=[{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        ports=[{"name": "http", "containerPort": 8000}],
        readinessProbe={"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
        volumeMounts=[{"name": "config", "mountPath": "/etc/app"}],
    )
    volumes = [{"name": "config", "configMap": {"name": "greeting"}}]
    node.apply(config, pod("server", server, volumes=volumes))
    node.wait_ready("server")
    found = node.get("pod", "server")
    status, folder = found["status"], node.pods_folder / found["metadata"]["uid"]
    assert folder.is_dir()
    assert status["podIP"].startswith("127.")
    assert status["hostIP"] == node.get("node", "host")["status"]["addresses"][0]["address"]
    lines = node.cluster.kubectl("logs", "server").splitlines()
    assert lines[0] == "hello"
    assert lines[1] == "['ca.crt', 'namespace', 'token']"
    node.cluster.kubectl("delete", "pod", "server")
    wait_for("its folder is gone", lambda: not folder.exists())


def test_a_service_account_token_is_accepted_by_the_server(node: Node) -> None:
    script = """
import json, os, pathlib, ssl, urllib.request
root = pathlib.Path(os.environ["TERRACE_POD_ROOT"])
account = root / "var/run/secrets/kubernetes.io/serviceaccount"
context = ssl.create_default_context(cafile=str(account / "ca.crt"))
host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
request = urllib.request.Request(
    f"https://{host}:{port}/apis/authentication.k8s.io/v1/selfsubjectreviews",
    json.dumps(review).encode(),
    {
        "Authorization": "Bearer " + (account / "token").read_text(),
        "Content-Type": "application/json",
    },
)
answer = json.load(urllib.request.urlopen(request, context=context))
print(answer["status"]["userInfo"]["username"])
"""
    node.apply(pod("whoami", container(script, image="test/py"), restartPolicy="Never"))
    node.wait("pod/whoami", "--for=jsonpath={.status.phase}=Succeeded")
    assert node.cluster.kubectl("logs", "whoami") == "system:serviceaccount:default:default\n"


def test_logs_are_followed_to_the_end(node: Node) -> None:
    script = "i=0; while [ $i -lt 20 ]; do echo line $i; i=$((i+1)); sleep 0.05; done"
    node.apply(pod("talker", container(script), restartPolicy="Never"))
    wait_for("it runs", lambda: node.state("talker").keys() & {"running", "terminated"})
    followed = node.cluster.kubectl("logs", "-f", "talker")
    assert followed.splitlines() == [f"line {number}" for number in range(20)]
    assert node.cluster.kubectl("logs", "talker", "--tail=2") == "line 18\nline 19\n"


def test_exec_attach_and_port_forward_say_why_they_cannot(node: Node) -> None:
    node.apply(pod("plain", container("exec sleep infinity")))
    node.wait_ready("plain")
    for words in (["exec", "plain", "--", "ls"], ["port-forward", "plain", ":80"]):
        command = node.cluster.kubectl_command(*words)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode != 0
        assert "not supported on the host node" in done.stderr
    node.cluster.kubectl("delete", "pod", "plain")


def test_a_claim_is_provisioned_and_keeps_its_data_when_the_pod_goes(node: Node) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    mounts = [{"name": "d", "mountPath": "/data"}]
    volumes = [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]

    def run(name: str, script: str) -> str:
        one = container(script, volumeMounts=mounts)
        node.apply(pod(name, one, volumes=volumes, restartPolicy="Never"))
        node.wait(f"pod/{name}", "--for=jsonpath={.status.phase}=Succeeded")
        text = node.cluster.kubectl("logs", name)
        node.cluster.kubectl("delete", "pod", name)
        return text

    node.apply(claim)
    run("writer", 'echo kept > "$TERRACE_POD_ROOT/data/f"')
    assert run("reader", 'cat "$TERRACE_POD_ROOT/data/f"') == "kept\n"
    volume = node.get("pv", node.get("pvc", "data")["spec"]["volumeName"])
    folder = node.cluster.folder.node / "volumes" / volume["metadata"]["name"]
    assert volume["spec"]["local"]["path"] == str(folder)
    assert (folder / "f").read_text() == "kept\n"
    node.cluster.kubectl("delete", "pvc", "data")
    name = volume["metadata"]["name"]
    wait_for("the volume is reclaimed", lambda: not node.get("pv", name))
    assert not folder.exists()


def test_memory_over_the_limit_is_oom_killed(node: Node) -> None:
    script = "import time; x = bytearray(100 << 20); time.sleep(60)"
    limited = container(script, image="test/py", resources={"limits": {"memory": "48Mi"}})
    node.apply(pod("greedy", limited, restartPolicy="Never"))
    node.wait("pod/greedy", "--for=jsonpath={.status.phase}=Failed")
    ended = node.state("greedy")["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


def test_an_unknown_image_is_an_err_image_pull_with_the_reason(node: Node) -> None:
    node.apply(pod("stranger", container("true", image="docker.io/library/nginx:1")))
    refusals = {"ErrImagePull", "ImagePullBackOff"}
    wait_for("it is refused", lambda: _waiting(node, "stranger").get("reason") in refusals)
    assert "pulls nothing" in _waiting(node, "stranger")["message"]
    wait_for("an event tells", lambda: "pulls nothing" in str(node.events("stranger")))
    node.cluster.kubectl("delete", "pod", "stranger")


def test_a_crashing_pod_backs_off_and_keeps_its_last_log(node: Node) -> None:
    node.apply(pod("crasher", container('echo "dying"; exit 7')))
    wait_for("it restarted twice", lambda: _restarts(node, "crasher") >= 2)
    assert node.cluster.kubectl("logs", "crasher", "--previous") == "dying\n"
    last = node.get("pod", "crasher")["status"]["containerStatuses"][0]["lastState"]
    assert last["terminated"]["exitCode"] == 7
    node.cluster.kubectl("delete", "pod", "crasher")


def test_a_job_completes_with_its_termination_message(node: Node) -> None:
    script = 'printf "the outcome" > "$TERRACE_POD_ROOT/dev/termination-log"'
    template = {"spec": pod("", container(script), restartPolicy="Never")["spec"]}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "job"},
        "spec": {"template": template},
    }
    node.apply(job)
    node.wait("job/job", "--for=condition=complete")
    listed = node.cluster.kubectl("get", "pod", "-l", "job-name=job", "-o", "json")
    (found,) = json.loads(listed)["items"]
    assert found["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == (
        "the outcome"
    )


def test_a_job_fails_at_once_on_the_exit_code_its_policy_names(node: Node) -> None:
    template = {"spec": pod("", container("exit 10"), restartPolicy="Never")["spec"]}
    rule = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [10]}}
    spec = {"template": template, "backoffLimit": 4, "podFailurePolicy": {"rules": [rule]}}
    node.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "bad"}, "spec": spec})
    node.wait("job/bad", "--for=condition=failed")
    assert node.get("job", "bad")["status"]["failed"] == 1


def test_a_missing_secret_holds_a_pod_until_it_is_there(node: Node) -> None:
    volumes = [{"name": "s", "secret": {"secretName": "late"}}]
    mounts = [{"name": "s", "mountPath": "/s"}]
    script = 'cat "$TERRACE_POD_ROOT/s/k"'
    node.apply(
        pod("patient", container(script, volumeMounts=mounts), volumes=volumes,
            restartPolicy="Never")
    )  # fmt: skip
    wait_for("an event tells", lambda: 'secret "late" not found' in str(node.events("patient")))
    node.cluster.kubectl("create", "secret", "generic", "late", "--from-literal=k=v")
    node.wait("pod/patient", "--for=jsonpath={.status.phase}=Succeeded")
    assert node.cluster.kubectl("logs", "patient") == "v"


def _waiting(node: Node, name: str) -> Json:
    found: Json = node.state(name).get("waiting") or {}
    return found


def stateful_set(name: str) -> Json:
    labels = {"app": name}
    one = container('echo "pid $$$$"; exec sleep infinity')
    template = {"metadata": {"labels": labels}, "spec": pod("", one)["spec"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name},
        "spec": {
            "serviceName": name,
            "selector": {"matchLabels": labels},
            "template": template,
        },
    }


def _restarts(node: Node, name: str) -> int:
    statuses = (node.get("pod", name).get("status") or {}).get("containerStatuses") or [{}]
    return int(statuses[0].get("restartCount") or 0)


def test_a_killed_process_and_a_deleted_pod_come_back(node: Node) -> None:
    node.apply(stateful_set("set"))
    wait_for("it is there", lambda: node.get("pod", "set-0"))
    node.wait_ready("set-0")
    said = wait_for("its first line", lambda: node.cluster.kubectl("logs", "set-0"))
    pid = int(said.split()[1])
    os.kill(pid, signal.SIGKILL)
    wait_for("it restarted", lambda: _restarts(node, "set-0") == 1)
    node.wait_ready("set-0")
    last = node.get("pod", "set-0")["status"]["containerStatuses"][0]["lastState"]
    assert last["terminated"]["exitCode"] == 137
    uid = node.get("pod", "set-0")["metadata"]["uid"]
    node.cluster.kubectl("delete", "pod", "set-0")
    wait_for("a new one", lambda: (node.get("pod", "set-0") or {}).get("metadata", {}).get(
        "uid", uid) != uid)  # fmt: skip
    node.wait_ready("set-0")


def test_an_idle_node_writes_nothing_but_its_lease(node: Node) -> None:
    wait_for("all is quiet", lambda: not _writes_since(node, time.time() - 3), 120, every=1)
    began = time.time()
    wait_for("twelve seconds", lambda: time.time() - began > 12, every=1)
    assert set(_writes_since(node, began)) <= {"patch leases"}


def _writes_since(node: Node, moment: float) -> list[str]:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))
    return [
        f"{one.verb} {one.resource}"
        for one in node.cluster.audit_events()
        if one.user.startswith("system:node:") and one.is_write and one.received >= stamp
    ]


def test_pods_outlive_a_restart_of_the_api_server(node: Node) -> None:
    node.apply(pod("steady", container("exec sleep infinity")))
    node.wait_ready("steady")
    before = node.get("pod", "steady")["status"]["containerStatuses"][0]["containerID"]
    node.kill("kube-apiserver")
    node.cluster.up()
    node.apply(pod("later", container("exec sleep infinity")))
    node.wait_ready("later")
    after = node.get("pod", "steady")["status"]["containerStatuses"][0]
    assert (after["containerID"], after["restartCount"]) == (before, 0)


def test_a_killed_agent_leaves_no_process_and_the_next_one_goes_on(node: Node) -> None:
    node.apply(stateful_set("survivor"))
    wait_for("it is there", lambda: node.get("pod", "survivor-0"))
    node.wait_ready("survivor-0")
    before = _restarts(node, "survivor-0")
    assert leftovers.find(node.pods_folder)
    node.kill("node")
    wait_for("no process is left", lambda: not leftovers.find(node.pods_folder), every=0.05)
    node.cluster.up()
    wait_for("it restarted", lambda: _restarts(node, "survivor-0") == before + 1)
    node.wait_ready("survivor-0")
