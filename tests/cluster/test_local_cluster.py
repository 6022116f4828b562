"""A local cluster as its users meet it: up, repaired, side by side, down without a rest."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from support.clusters import cluster_name
from support.waiting import wait_for
from terrace.local import processes
from terrace.local.binaries import find_binaries
from terrace.local.cluster import LocalCluster
from terrace.local.errors import CommandError, ComponentError, LocalClusterError
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(400)
BARE = ClusterOptions(nodes=0, fsync=False)
PROGRAMS = (
    "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "helm",
)  # fmt: skip


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A control plane that tests may break; each begins with ``up``, which repairs it."""
    folder = tmp_path_factory.mktemp("bare") / "c"
    made = LocalCluster(cluster_name("bare"), directory=folder, options=BARE)
    yield made
    made.down()


def pids(cluster: LocalCluster) -> dict[str, int]:
    return {part.name: part.pid or 0 for part in cluster.status().components}


def listening(pid: int) -> list[tuple[str, int]]:
    connections = psutil.Process(pid).net_connections(kind="tcp")
    return [(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN]


def answers(address: tuple[str, int]) -> bool:
    with socket.socket() as client:
        return client.connect_ex(address) == 0


def test_it_has_the_pinned_version_a_default_account_and_a_storage_class(
    control_plane: LocalCluster,
) -> None:
    version = json.loads(control_plane.kubectl("version", "-o", "json"))
    assert version["serverVersion"]["gitVersion"] == "v1.36.3"
    assert control_plane.kubectl("get", "serviceaccount", "default", "-o", "name")
    classes = json.loads(control_plane.kubectl("get", "storageclass", "-o", "json"))["items"]
    assert [item["metadata"]["name"] for item in classes] == ["terrace-local"]


def test_rbac_is_on(control_plane: LocalCluster) -> None:
    account = "--as=system:serviceaccount:default:default"
    with pytest.raises(CommandError) as refused:
        control_plane.kubectl("auth", "can-i", "create", "pods", account)
    assert refused.value.returncode == 1
    control_plane.kubectl("create", "rolebinding", "t", "--clusterrole=edit",
                          "--serviceaccount=default:default")  # fmt: skip

    def may() -> bool:
        """The server goes by a binding a moment after it has stored it."""
        with suppress(CommandError):  # That is how a no ends.
            said = control_plane.kubectl("auth", "can-i", "create", "pods", account)
            return said.strip() == "yes"
        return False

    wait_for("the right that was given", may)


def test_a_node_may_not_write_another_node(control_plane: LocalCluster) -> None:
    kubeconfig = control_plane.folder.kubeconfigs / "node.conf"
    with pytest.raises(CommandError, match="forbidden"):
        control_plane.kubectl("label", "node", "other", "a=b", f"--kubeconfig={kubeconfig}")


def test_objects_without_credentials_are_not_shown(control_plane: LocalCluster) -> None:
    with pytest.raises(CommandError, match=r'User "system:anonymous" cannot list resource "pods"'):
        control_plane.kubectl(
            "get", "pods", f"--server={control_plane.server}", "--kubeconfig=/dev/null",
            f"--certificate-authority={control_plane.folder.pki / 'ca.crt'}", "--username=a",
            "--password=b",
        )  # fmt: skip


def test_an_invalid_object_is_refused_with_the_servers_words(control_plane: LocalCluster) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}}
    with pytest.raises(CommandError, match=r"spec\.containers: Required value"):
        control_plane.kubectl("apply", "--validate=false", "-f", "-", stdin=json.dumps(pod))


def test_the_audit_log_counts_writes_by_user_agent(control_plane: LocalCluster) -> None:
    control_plane.kubectl("create", "configmap", "audited")

    def seen() -> list[str]:
        return [
            event.user_agent
            for event in control_plane.audit_events()
            if event.is_write and event.resource == "configmaps" and event.name == "audited"
        ]

    assert wait_for("the audit event", seen)[0].startswith("kubectl")


def test_a_chart_is_installed_with_values(control_plane: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: small\nversion: 0.1.0\n")
    (tmp_path / "templates" / "map.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: small}\n"
        "data: {word: {{ .Values.word | quote }}}\n"
    )
    for word in ("first", "second"):
        control_plane.install_chart(tmp_path, {"word": word}, release="small", namespace="small")
        command = ("get", "configmap", "small", "-n", "small", "-o", "jsonpath={.data.word}")
        assert control_plane.kubectl(*command) == word


def test_two_clusters_run_side_by_side_and_share_nothing(
    control_plane: LocalCluster, bare: LocalCluster
) -> None:
    bare.up()
    assert bare.server != control_plane.server
    bare.kubectl("create", "namespace", "only-here")
    assert "only-here" not in control_plane.kubectl("get", "namespaces", "-o", "name")
    with pytest.raises(CommandError, match=r"certificate signed by unknown authority"):
        bare.kubectl("get", "namespaces", f"--server={control_plane.server}")
    mine = {address for pid in pids(bare).values() for address, _ in listening(pid)}
    theirs = {address for pid in pids(control_plane).values() for address, _ in listening(pid)}
    assert len(mine) == len(theirs) == 1
    assert mine.isdisjoint(theirs)


def test_a_killed_api_server_is_reported_and_repaired_with_all_objects(
    bare: LocalCluster,
) -> None:
    bare.up()
    bare.kubectl("create", "configmap", "mended")
    before = pids(bare)
    server = bare.server
    os.kill(before["kube-apiserver"], signal.SIGKILL)
    wait_for("its end", lambda: not bare.status().is_running)
    assert not bare.status().is_ready
    assert [part.name for part in bare.status().components if not part.is_alive] == [
        "kube-apiserver"
    ]

    assert bare.up()
    after = pids(bare)
    assert {name for name in after if after[name] != before[name]} == {"kube-apiserver"}
    assert bare.server == server
    assert bare.kubectl("get", "configmap", "mended", "-o", "name") == "configmap/mended\n"

    assert not bare.up(), "it runs already"
    assert pids(bare) == after


def test_down_leaves_no_process_no_port_and_no_file(bare: LocalCluster) -> None:
    bare.up()
    ended = pids(bare)
    addresses = [address for pid in ended.values() for address in listening(pid)]
    assert len(addresses) == 5
    assert bare.down()
    assert not [pid for pid in ended.values() if psutil.pid_exists(pid)]
    assert not [address for address in addresses if answers(address)]
    assert processes.left_behind(bare.folder.root) == []
    assert not bare.folder.root.exists()
    assert not bare.down(), "there is nothing left to take down"


def test_a_stopped_cluster_goes_on_where_it_was(bare: LocalCluster) -> None:
    bare.up()
    bare.kubectl("create", "configmap", "kept")
    server = bare.server
    bare.down(keep_data=True)
    assert bare.status().is_stopped
    assert bare.up()
    assert bare.server == server
    assert bare.kubectl("get", "configmap", "kept", "-o", "name") == "configmap/kept\n"


def test_a_running_cluster_does_not_change_its_options_in_silence(bare: LocalCluster) -> None:
    bare.up()
    other = LocalCluster(
        bare.name, directory=bare.folder.root, options=ClusterOptions(nodes=0, audit=True)
    )
    with pytest.raises(LocalClusterError, match="runs with other options"):
        other.up()
    wait_for("a refused command breaks nothing", lambda: bare.status().is_ready)


def test_a_component_that_cannot_start_is_named_with_its_log_and_nothing_stays(
    tmp_path: Path,
) -> None:
    options = ClusterOptions(nodes=0, extra_args={"kube-scheduler": ("--no-such-flag",)})
    broken = LocalCluster(cluster_name("broken"), directory=tmp_path / "c", options=options)
    with pytest.raises(ComponentError, match="unknown flag: --no-such-flag") as error:
        broken.up()
    assert error.value.component == "kube-scheduler"
    assert error.value.log == tmp_path / "c" / "logs" / "kube-scheduler.log"
    assert broken.status().is_stopped
    assert processes.left_behind(tmp_path / "c") == []
    broken.down()


def test_an_older_version_is_emulated(tmp_path: Path) -> None:
    options = ClusterOptions(nodes=0, fsync=False, emulated_version="1.34")
    older = LocalCluster(cluster_name("older"), directory=tmp_path / "c", options=options)
    try:
        older.up()
        version = json.loads(older.kubectl("version", "-o", "json"))["serverVersion"]
        assert (version["emulationMajor"], version["emulationMinor"]) == ("1", "34")
    finally:
        older.down()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    folder, name = tmp_path / "c", cluster_name("interrupted")
    programs = tmp_path / "programs"
    programs.mkdir()
    # One that takes its time, so that nothing is up before we interrupt.
    real = find_binaries(["kube-apiserver"], None, print)["kube-apiserver"]
    slow = programs / "kube-apiserver"
    slow.write_text(f'#!/bin/sh\nsleep 120\nexec "{real}" "$@"\n')
    slow.chmod(0o755)
    command = [sys.executable, "-m", "terrace.cli", "local", "up", "--no-node",
               "--name", name, "--dir", str(folder), "--bin", str(programs)]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as starting:
        assert starting.stderr
        assert any("kube-apiserver started" in line for line in starting.stderr)
        assert processes.left_behind(folder)
        starting.send_signal(number)
        starting.stderr.read()
    assert starting.returncode not in (0, None)
    assert processes.left_behind(folder) == []
    LocalCluster(name, directory=folder).down()


def test_what_a_killed_up_started_is_found_by_down(bare: LocalCluster) -> None:
    bare.up()
    state = bare.folder.load()
    assert state
    # As if the command had died between starting a process and recording it.
    known = {name: record for name, record in state.processes.items() if name == "etcd"}
    bare.folder.save(state.model_copy(update={"processes": known}))
    bare.down()
    assert processes.left_behind(bare.folder.root) == []


def test_two_ups_at_once_make_one_cluster(bare: LocalCluster) -> None:
    bare.down()
    made: list[bool] = []
    threads = [threading.Thread(target=lambda: made.append(bare.up())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False, True]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_it_works_for_an_ordinary_user() -> None:
    """With no rights of root but to read: this Python may lie below root's home."""
    nobody = pwd.getpwnam("nobody")
    home = Path(tempfile.mkdtemp(prefix="terrace-user-"))  # pytest's folders are root's alone
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    become = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups",
              "--bounding-set=-all,+dac_read_search", "--inh-caps=-all,+dac_read_search",
              "--ambient-caps=-all,+dac_read_search"]  # fmt: skip
    # The programs that these tests have already, or the user would build their own for minutes; and
    # where the user may look, for they may lie below root's home as well.
    programs = home / "programs"
    programs.mkdir(0o755)
    for name, path in find_binaries(PROGRAMS, None, print).items():
        shutil.copy2(path, programs / name)
    env = {"PATH": os.environ["PATH"], "TERRACE_K8S_BIN": str(programs)}

    def terrace(*words: str) -> str:
        command = [*become, sys.executable, "-m", "terrace.cli", "local", *words, "--name", "user"]
        return subprocess.run(command, env={**env, "HOME": str(home)}, cwd=home, check=True,
                              stdout=subprocess.PIPE, text=True, timeout=180).stdout  # fmt: skip

    try:
        terrace("up")
        (state,) = json.loads(terrace("status", "-o", "json"))
        assert state["is_ready"]
        assert {psutil.Process(part["pid"]).username() for part in state["components"]} == {
            "nobody"
        }
        assert "cluster 'user' deleted" in terrace("down")
    finally:
        terrace("down")  # Nothing to do, unless it went wrong above.
        shutil.rmtree(home)
