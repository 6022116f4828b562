"""Operator processes for the tests: under their own service account, with exactly our roles."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.controller_api import Api, ApiError, Manifest, eventually
from terrace.controller.kinds import LEASE, MODEL, POOL
from terrace.controller.lease import LEASE_NAME
from terrace.controller.rbac import CLUSTER_RULES, NAMESPACE_RULES
from terrace.local.addresses import choose_ports

if TYPE_CHECKING:
    from terrace.controller.kinds import Kind
    from terrace.local.cluster import LocalCluster

SYSTEM = "terrace-system"
ROOT = Path(__file__).parents[2]
_RBAC = "rbac.authorization.k8s.io"
_HOSTS = itertools.cycle(range(10, 250))


class Operators:
    """Starts and kills operators against one cluster."""

    def __init__(self, cluster: LocalCluster, api: Api, folder: Path) -> None:
        self._folder = folder
        self._kubeconfig = folder / "operator.kubeconfig"
        self._running: list[subprocess.Popen[bytes]] = []
        self._cluster = cluster
        install(cluster, api)
        self._server = cluster.server
        token = cluster.kubectl("create", "token", "terrace-operator", "-n", SYSTEM).strip()
        ca = str(cluster.folder.pki / "ca.crt")
        config: Manifest = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "c", "cluster": {"server": cluster.server, "certificate-authority": ca}}
            ],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self._kubeconfig.write_text(json.dumps(config))

    def start(self, name: str = "operator-0", *, through: int = 0, **settings: Any) -> Operator:
        """One operator; settings are TERRACE_ variables in lower case, ``through`` a proxy."""
        address, port = own_endpoint(self._cluster)
        kubeconfig = self._kubeconfig
        if through:
            host = self._server.rsplit(":", 1)[0]
            kubeconfig = self._folder / f"through-{through}.kubeconfig"
            text = self._kubeconfig.read_text().replace(self._server, f"{host}:{through}")
            kubeconfig.write_text(text)
        environ = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(kubeconfig),
            "POD_NAME": name,
            "POD_NAMESPACE": SYSTEM,
            "POD_IP": address,
            "TERRACE_METRICS_PORT": str(port),
            "TERRACE_RUNTIME_IMAGE": "terrace/runtime:0.1.0",
            "TERRACE_GATEWAY_URL": "http://gateway:8080/v1",
            **{f"TERRACE_{key.upper()}": str(value) for key, value in settings.items()},
        }
        log = self._folder / f"{name}-{len(self._running)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "terrace.controller"],
                env=environ,
                cwd=ROOT,
                stdout=file,
                stderr=file,
            )
        self._running.append(process)
        return Operator(name, process, (address, port), log)

    def stop_all(self) -> None:
        """End every process that is left."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait()


class Operator:
    """One operator process."""

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], endpoint: tuple[str, int], log: Path
    ) -> None:
        self.name = name
        self.process = process
        self.endpoint = endpoint
        """Address and port of its probes and metrics."""
        self.log = log

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def install(cluster: LocalCluster, api: Api) -> None:
    """CRDs, namespace, service account and roles, each in effect."""
    cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    for path, body in _objects():
        try:
            api.request("POST", path, body)
        except ApiError as error:
            if error.status != 409:
                raise
    established = ("wait", "--for=condition=Established", "-f", str(ROOT / "crds"))
    cluster.kubectl(*established, "--timeout=60s", timeout_s=80)
    eventually(lambda: all(_is_served(api, kind) for kind in (MODEL, POOL)), "kinds are served")
    eventually(lambda: _has_its_rights(api), "the roles are in effect")


def own_endpoint(cluster: LocalCluster) -> tuple[str, int]:
    """An address for one process, in the cluster's own block of the loopback, and a port there.

    A port that is free on 127.0.0.1 may be a connection's by the time at which a process binds it;
    nobody else listens here, and no connection comes from here.
    """
    state = cluster.folder.load()
    assert state is not None
    address = f"127.{state.block}.0.{next(_HOSTS)}"
    return address, choose_ports(address, ("its",), {})["its"]


def _is_served(api: Api, kind: Kind) -> bool:
    """A kind is established a moment before the server serves it."""
    try:
        api.items(kind)
    except ApiError as error:
        if error.status != 404:
            raise
        return False
    return True


def _has_its_rights(api: Api) -> bool:
    """The server goes by a role a moment after it has stored it: one right of each is looked at."""
    user = f"system:serviceaccount:{SYSTEM}:terrace-operator"
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    looked_at = (
        {"verb": "list", "group": MODEL.group, "resource": MODEL.plural},
        {"verb": "get", "group": LEASE.group, "resource": LEASE.plural, "namespace": SYSTEM}
        | {"name": LEASE_NAME},
    )
    reviews = [{"spec": {"user": user, "resourceAttributes": one}} for one in looked_at]
    return all(api.request("POST", path, review)["status"]["allowed"] for review in reviews)


def _objects() -> list[tuple[str, Manifest]]:
    subject = [{"kind": "ServiceAccount", "name": "terrace-operator", "namespace": SYSTEM}]
    meta = {"name": "terrace-operator"}

    def role(kind: str, rules: Any) -> Manifest:
        return {"apiVersion": f"{_RBAC}/v1", "kind": kind, "metadata": meta, "rules": rules}

    def binding(kind: str) -> Manifest:
        reference = {"apiGroup": _RBAC, "kind": kind, "name": "terrace-operator"}
        return {
            "apiVersion": f"{_RBAC}/v1",
            "kind": f"{kind}Binding",
            "metadata": meta,
            "roleRef": reference,
            "subjects": subject,
        }

    root = f"/apis/{_RBAC}/v1"
    return [
        ("/api/v1/namespaces", {"metadata": {"name": SYSTEM}}),
        (f"/api/v1/namespaces/{SYSTEM}/serviceaccounts", {"metadata": meta}),
        (f"{root}/clusterroles", role("ClusterRole", CLUSTER_RULES)),
        (f"{root}/clusterrolebindings", binding("ClusterRole")),
        (f"{root}/namespaces/{SYSTEM}/roles", role("Role", NAMESPACE_RULES)),
        (f"{root}/namespaces/{SYSTEM}/rolebindings", binding("Role")),
    ]
