"""Releases with live models on the host node: what runs is not touched, and no stream is cut."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Self

import httpx2
import pytest

from chart.programs import helm4, program
from chart.releases import Release, knows_limits, older
from chart.rendering import CHART, ROOT
from support.chain import Chain
from support.clusters import cluster_name
from support.waiting import wait_for
from terrace import __version__
from terrace.local.cluster import LocalCluster
from terrace.local.errors import CommandError
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(900)
RELEASE, SYSTEM, TEAM = "terrace", "terrace-system", "team-a"
QUESTION = [{"role": "user", "content": "What is a pod?"}]
TOKENS = 400
GATEWAY_RIGHTS = {
    (resource, verb) for resource in ("pods", "inferencemodels") for verb in ("list", "watch")
}
OURS = "app.kubernetes.io/instance=terrace"
REMOVE = ("delete", "im,ipool", "-A", "--all", "--cascade=foreground")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, kubernetes: str | None) -> Iterator[Chain]:
    """A cluster of its own, because kinds come and go; both namespaces are *restricted*."""
    cluster = LocalCluster(
        cluster_name("lifecycle"),
        directory=tmp_path_factory.mktemp("lifecycle"),
        options=ClusterOptions(nodes=1, audit=True, fsync=False, emulated_version=kubernetes),
    )
    cluster.up()
    try:
        for name in (SYSTEM, TEAM):
            labels = {"pod-security.kubernetes.io/enforce": "restricted"}
            metadata = {"name": name, "labels": labels}
            namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
            cluster.kubectl("apply", "-f", "-", stdin=json.dumps(namespace))
        yield Chain(cluster)
    finally:
        cluster.down()


@pytest.fixture
def release(chain: Chain) -> Release:
    return Release(chain.cluster, helm4(), RELEASE, SYSTEM)


class Streams:
    """Clients that stream one long answer after the other, each from whichever gateway is ready."""

    def __init__(self, chain: Chain, clients: int = 2) -> None:
        self._chain = chain
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read) for _ in range(clients)]
        self.answers = 0
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        wait_for("a first answer", lambda: self.answers or self.failures, 120)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                Stream(self._chain).read()
                self.answers += 1
            except Exception as error:  # noqa: BLE001 -- whatever it is, the test tells of it
                self.failures.append(f"{type(error).__name__}: {error}")


class Stream:
    """A long answer whose head is there and whose body nobody has read yet."""

    def __init__(self, chain: Chain) -> None:
        body = {
            "model": "demo",
            "messages": QUESTION,
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": True,
        }
        self._client = httpx2.Client(timeout=120)
        answered = wait_for("a gateway to connect to", lambda: self._ask(chain, body))
        assert answered is not None
        self._response = answered

    def _ask(self, chain: Chain, body: dict[str, object]) -> httpx2.Response | None:
        """None where the gateway that was ready a moment ago takes no connection any more."""
        url = f"http://{serving(chain)}:8080/v1/chat/completions"
        try:
            return self._client.send(
                self._client.build_request("POST", url, json=body), stream=True
            )
        except httpx2.ConnectError:
            return None

    def read(self) -> None:
        """All of it; fails unless it ends as the API says."""
        with closing(self._client), closing(self._response) as response:
            lines = [line for line in response.iter_lines() if line]
        assert response.status_code == 200, lines
        assert lines[-1] == "data: [DONE]", lines[-2:]
        ends = [json.loads(line[6:])["choices"] for line in lines[:-1]]
        assert "length" in [choice["finish_reason"] for choices in ends for choice in choices]


def serving(chain: Chain) -> str:
    """Address of a gateway that the Service would send to: ready, and not on its way out."""
    label = f"{OURS},app.kubernetes.io/component=gateway"
    query = ("get", "pods", "-n", SYSTEM, "-l", label, "-o", "json")

    def ready() -> str:
        for pod in json.loads(chain.cluster.kubectl(*query))["items"]:
            conditions = pod.get("status", {}).get("conditions", [])
            is_ready = ("Ready", "True") in [(each["type"], each["status"]) for each in conditions]
            if is_ready and "deletionTimestamp" not in pod["metadata"]:
                return str(pod["status"]["podIP"])
        return ""

    return wait_for("a ready gateway", ready)


def put_models(chain: Chain) -> None:
    """A pool that deletes unused files, and a model with a disk tier."""
    head = {"apiVersion": "terrace.dev/v1alpha1"}
    pool = {
        **head,
        "kind": "InferencePool",
        "metadata": {"name": "default", "namespace": TEAM},
        "spec": {
            "flavors": [{"name": "cpu"}],
            "modelCache": {"size": "1Gi", "deleteUnusedAfterSeconds": 1},
        },
    }
    model = {
        **head,
        "kind": "InferenceModel",
        "metadata": {"name": "demo", "namespace": TEAM},
        "spec": {
            "poolRef": {"name": "default"},
            "source": {"uri": "demo://chat"},
            "context": {"length": 2048, "parallel": 4},
            "offload": {"maxDisk": "64Mi"},
        },
    }
    chain.apply(pool, model)


def wait_ready(chain: Chain) -> None:
    """For 150 s; then it tells what the API and the operator know."""
    try:
        chain.cluster.kubectl(
            "wait", "--for=condition=Ready", "im/demo", "-n", TEAM, "--timeout=150s", timeout_s=160
        )
    except CommandError as error:
        looks = (
            ("get", "im,ipool,pods,jobs,pvc", "-n", TEAM, "-o", "wide"),
            ("get", "im/demo", "-n", TEAM, "-o", "jsonpath={.status}"),
            ("get", "pods", "-n", SYSTEM, "-o", "wide"),
            ("logs", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--tail=40"),
        )
        told = "\n".join(chain.cluster.kubectl(*look) for look in looks)
        raise AssertionError(f"{error}\n{told}") from None


def wait_served(chain: Chain) -> None:
    """Until it is ready and the gateway, which hears of that by itself, knows so."""
    wait_ready(chain)
    chain.ask({"model": "demo", "messages": QUESTION, "max_tokens": 1})


def replicas(chain: Chain) -> dict[str, int]:
    """Uid -> restarts of every replica."""
    return {
        pod["metadata"]["uid"]: sum(
            each["restartCount"] for each in pod["status"].get("containerStatuses", ())
        )
        for pod in chain.pods("demo", TEAM)
    }


def images(chain: Chain) -> set[str]:
    """Images of the pods of the release that are not on their way out."""
    items = json.loads(chain.cluster.kubectl("get", "pods", "-n", SYSTEM, "-l", OURS, "-o", "json"))
    return {
        pod["spec"]["containers"][0]["image"]
        for pod in items["items"]
        if "deletionTimestamp" not in pod["metadata"]
    }


def images_of(version: str) -> set[str]:
    return {f"terrace/{component}:{version}" for component in ("operator", "gateway")}


def names(chain: Chain, kind: str, *where: str) -> set[str]:
    return set(chain.cluster.kubectl("get", kind, *where, "-o", "name").split())


def asked_by_gateway(chain: Chain) -> set[tuple[str, str]]:
    """Resource and verb of all its requests; a watch is in the record once it has ended."""
    user = f"system:serviceaccount:{SYSTEM}:{RELEASE}-gateway"
    return {
        (event.resource, event.verb) for event in chain.cluster.audit_events() if event.user == user
    }


def test_versions_change_under_a_live_model_and_leave_it_alone(
    chain: Chain, release: Release, tmp_path: Path
) -> None:
    wait = ("--wait", "--timeout=3m")
    release.install(older(tmp_path, helm4()), *wait)
    assert images(chain) == images_of("0.0.9")
    assert not knows_limits(chain.cluster)
    put_models(chain)
    wait_served(chain)
    before = replicas(chain)
    assert list(before.values()) == [0]

    held = Stream(chain)  # Read after the gateway that answers it has been replaced.
    with Streams(chain) as streams:
        release.install(CHART, *wait)
        assert knows_limits(chain.cluster)
        wait_for("the new version alone", lambda: images(chain) == images_of(__version__))
        wait_ready(chain)
        assert replicas(chain) == before
        release.run("rollback", release.name, "1", *wait)
        assert not knows_limits(chain.cluster)
        wait_for("the old version alone", lambda: images(chain) == images_of("0.0.9"))
        wait_ready(chain)
        seen = streams.answers
        wait_for("answers through the old one", lambda: streams.answers > seen or streams.failures)
    assert streams.failures == []
    held.read()
    assert replicas(chain) == before

    release.install(CHART, *wait)
    patch = json.dumps({"spec": {"limits": {"maxTokens": 900}}})
    chain.cluster.kubectl("patch", "im/demo", "-n", TEAM, "--type=merge", "-p", patch)
    assert chain.get("im", "demo", TEAM)["spec"]["limits"] == {"maxTokens": 900}
    wait_for("a replica with the limit", lambda: before.keys().isdisjoint(replicas(chain)), 120)


def test_uninstalling_keeps_what_is_kept_and_a_new_install_finds_it(
    chain: Chain, release: Release
) -> None:
    release.install(CHART, "--wait", "--timeout=3m")
    put_models(chain)
    wait_ready(chain)
    settled = "--for=condition=Reconciling=False"
    chain.cluster.kubectl("wait", settled, "im/demo", "-n", TEAM, "--timeout=60s", timeout_s=70)
    before = replicas(chain)
    assert len(before) == 1
    release.run("uninstall", release.name, "--wait", "--timeout=3m")
    wait_for("operator and gateway are gone", lambda: images(chain) == set())
    assert replicas(chain) == before
    assert names(chain, "clusterrole,clusterrolebinding", "-l", OURS) == set()

    notes = release.install(CHART, "--wait", "--timeout=3m", crds={"keep": False})
    assert f"kubectl {' '.join(REMOVE)}" in notes
    wait_served(chain)
    Stream(chain).read()
    assert replicas(chain) == before

    # As the notes and the page say: the garbage collector needs the kinds.
    chain.cluster.kubectl(*REMOVE, timeout_s=300)
    managed = ("-n", TEAM, "-l", "app.kubernetes.io/managed-by=terrace")
    kinds = "pod,service,configmap,statefulset,job,pdb,pvc"
    wait_for("all that models were is gone", lambda: not names(chain, kinds, *managed), 120)
    wait_for("their volumes are gone", lambda: not names(chain, "pvc", "-n", TEAM), 120)
    release.run("uninstall", release.name, "--wait", "--timeout=3m")
    wait_for("the kinds are gone", lambda: not names(chain, "crd"))
    left = names(chain, "secret,lease,deployment,service,role,rolebinding", "-n", SYSTEM)
    # The key, so that replicas which outlive an uninstall trust the next install; the empty lease.
    assert left == {"secret/terrace-trust", "lease.coordination.k8s.io/terrace-operator"}


def test_a_namespaced_install_serves_its_namespaces_and_asks_for_no_more(chain: Chain) -> None:
    release = Release(chain.cluster, program("helm3"), RELEASE, SYSTEM)
    chain.cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    established = ("wait", "--for=condition=Established", "-f", str(ROOT / "crds"))
    chain.cluster.kubectl(*established, "--timeout=60s", timeout_s=80)
    notes = release.install(
        CHART,
        watchNamespaces=[TEAM],
        crds={"enabled": False},
        aggregateRoles=False,
        nodeRole=False,
    )
    assert names(chain, "clusterrole,clusterrolebinding", "-l", OURS) == set()
    put_models(chain)
    elsewhere = chain.get("im", "demo", TEAM)
    elsewhere["metadata"] = {"name": "elsewhere", "namespace": SYSTEM}
    chain.apply({key: elsewhere[key] for key in ("apiVersion", "kind", "metadata", "spec")})
    for line in notes.splitlines():  # What the notes tell an administrator.
        if line.startswith("  kubectl create clusterrole"):
            chain.cluster.kubectl(*line.split()[1:])
    wait_served(chain)
    Stream(chain).read()
    assert chain.get("im", "elsewhere", SYSTEM)["status"] == {"observedGeneration": -1}
    release.run("uninstall", release.name, "--wait", "--timeout=3m")
    wait_for(
        "the gateway's watches in the record", lambda: asked_by_gateway(chain) >= GATEWAY_RIGHTS
    )
    assert asked_by_gateway(chain) == GATEWAY_RIGHTS
