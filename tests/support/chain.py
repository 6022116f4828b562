"""The whole system under test, seen as a user sees it: kubectl, processes and the gateway."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import psutil
import yaml

from support.waiting import wait_for
from terrace.cli.demo import NAMESPACE, gateway_url
from terrace.local.environment import variables_of

if TYPE_CHECKING:
    from terrace.local.cluster import LocalCluster

ROOT = Path(__file__).parents[2]


@dataclass
class Chain:
    """The whole system under test, seen as a user sees it."""

    cluster: LocalCluster

    @property
    def url(self) -> str:
        """Base URL of the gateway for OpenAI clients."""
        return wait_for("a ready gateway pod", self._url)

    def _url(self) -> str:
        try:
            return gateway_url(self.cluster)
        except Exception:  # noqa: BLE001 - none is ready yet: the wait says so if it stays
            return ""

    def ask(self, body: dict[str, Any]) -> httpx2.Response:
        """An answer to a chat request.

        The gateway hears of a ready replica when kubectl does, or a moment later: until then it
        answers 503, and clients ask again. So does a new Service, which leads nowhere yet.
        """

        def probe() -> httpx2.Response | None:
            try:
                reply = httpx2.post(f"{self.url}/chat/completions", json=body, timeout=120)
            except httpx2.ConnectError:
                return None
            return None if reply.status_code == httpx2.codes.SERVICE_UNAVAILABLE else reply

        reply = wait_for(f"an answer of {body['model']}", probe)
        assert reply is not None
        assert reply.status_code == httpx2.codes.OK, reply.text
        return reply

    def get(self, kind: str, name: str, namespace: str = "default") -> dict[str, Any]:
        """One object as kubectl gets it; empty when there is none."""
        out = self.cluster.kubectl(
            "get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found"
        )
        value: dict[str, Any] = json.loads(out) if out.strip() else {}
        return value

    def pods(self, model: str, namespace: str = "default") -> list[dict[str, Any]]:
        """The replicas of a model."""
        out = self.cluster.kubectl(
            "get", "pods", "-n", namespace, "-l", f"terrace.dev/model={model}", "-o", "json"
        )
        items: list[dict[str, Any]] = json.loads(out)["items"]
        return [p for p in items if p["metadata"]["name"].startswith(f"{model}-cpu-")]

    def program(self, component: str) -> dict[str, Any]:
        """The running pod of ``operator`` or ``gateway``; empty while there is none."""
        selector = f"app.kubernetes.io/component={component}"
        out = self.cluster.kubectl("get", "pods", "-n", NAMESPACE, "-l", selector, "-o", "json")
        pods = [pod for pod in json.loads(out)["items"] if pod["status"].get("podIP")]
        return next((p for p in pods if "deletionTimestamp" not in p["metadata"]), {})

    def apply(self, *objects: dict[str, Any]) -> None:
        """kubectl apply."""
        self.cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def condition(self, model: str, kind: str) -> dict[str, Any]:
        """A condition of a model; empty while there is none."""
        conditions = self.get("im", model).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def wait_condition(
        self, model: str, kind: str, status: str, reason: str = "", timeout: float = 120
    ) -> dict[str, Any]:
        """Wait until a condition has this status (and reason)."""

        def probe() -> dict[str, Any]:
            found = self.condition(model, kind)
            fits = found.get("status") == status and (not reason or found["reason"] == reason)
            return found if fits else {}

        return wait_for(f"{model}: {kind}={status} {reason}", probe, timeout, every=0.3)

    def put_on_claim(self, claim: str, file: Path) -> None:
        """Have a pod, as a user would, copy ``file`` onto the claim."""
        self.apply(self.loader(claim, file))
        wait_for(
            "the copied file",
            lambda: self.get("pod", "loader").get("status", {}).get("phase") == "Succeeded",
            timeout=120,
        )
        self.delete("pod", "loader")

    def loader(self, claim: str, file: Path) -> dict[str, Any]:
        """The pod that copies ``file``; on the host node it is a process of this machine."""
        copy = f'cp {file} "$TERRACE_POD_ROOT"/claim/{file.name}'
        return pod_with_claim(claim, {"image": "test/sh", "args": ["-c", copy]})

    def delete(self, kind: str, *names: str) -> None:
        """kubectl delete, waiting until it is gone."""
        self.cluster.kubectl(
            "delete", kind, *names, "--ignore-not-found", "--wait=true", timeout_s=180
        )


def pod_with_claim(
    claim: str, container: dict[str, Any], *volumes: dict[str, Any]
) -> dict[str, Any]:
    mount = {"name": "claim", "mountPath": "/claim"}
    own = {"name": "copy", **container, "volumeMounts": [mount, *container.get("volumeMounts", ())]}
    source = {"name": "claim", "persistentVolumeClaim": {"claimName": claim}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "loader", "namespace": "default"},
        "spec": {"restartPolicy": "Never", "containers": [own], "volumes": [source, *volumes]},
    }


def processes_of(words: str, pod_ip: str) -> list[psutil.Process]:
    """Processes of the pod with this address whose command line holds ``words``.

    Other clusters of this machine run the same programs; a pod of ours knows its address.
    """
    own = os.fsencode(f"POD_IP={pod_ip}")
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if own in variables_of(process.pid) and words in " ".join(process.cmdline()):
                found.append(process)
    return found


def kill_9(process: psutil.Process) -> None:
    """As the kernel does it: no warning."""
    os.kill(process.pid, signal.SIGKILL)


def model(name: str, uri: str = "demo://chat", **spec: Any) -> dict[str, Any]:
    """An InferenceModel in the pool ``default``."""
    source = {"uri": uri, **spec.pop("source", {})}
    body = {"poolRef": {"name": "default"}, "source": source, **spec}
    body.setdefault("context", {"length": 2048, "parallel": 4})
    return {
        "apiVersion": "terrace.dev/v1alpha1",
        "kind": "InferenceModel",
        "metadata": {"name": name, "namespace": "default"},
        "spec": body,
    }
