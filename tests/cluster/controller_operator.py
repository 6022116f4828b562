"""Operator processes for the tests: under their own service account, with exactly our roles."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.controller_api import Api, ApiError, Manifest
from terrace.controller.rbac import CLUSTER_RULES, NAMESPACE_RULES

if TYPE_CHECKING:
    from terrace.local.cluster import LocalCluster

SYSTEM = "terrace-system"
ROOT = Path(__file__).parents[2]
_RBAC = "rbac.authorization.k8s.io"


class Operators:
    """Starts and kills operators against one cluster."""

    def __init__(self, cluster: LocalCluster, api: Api, folder: Path) -> None:
        self._folder = folder
        self._kubeconfig = folder / "operator.kubeconfig"
        self._running: list[subprocess.Popen[bytes]] = []
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
        port = _free_port()
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
            "POD_IP": "127.0.0.1",
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
        return Operator(name, process, port, log)

    def stop_all(self) -> None:
        """End every process that is left."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait()


class Operator:
    """One operator process."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.name = name
        self.process = process
        self.port = port
        self.log = log

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=15)


def install(cluster: LocalCluster, api: Api) -> None:
    """CRDs, namespace, service account and roles."""
    cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    for path, body in _objects():
        try:
            api.request("POST", path, body)
        except ApiError as error:
            if error.status != 409:
                raise
    cluster.kubectl(
        "wait", "--for=condition=Established", "-f", str(ROOT / "crds"), "--timeout=20s"
    )


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
