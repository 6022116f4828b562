"""A cluster whose host node runs test images, as tests see it, and manifests for it."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import yaml

from support.waiting import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from terrace.local.cluster import ComponentStatus, LocalCluster

Json = dict[str, Any]


class Node:
    """A cluster whose host node knows two images of ours: ``test/sh`` and ``test/py``."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster

    @property
    def pods_folder(self) -> Path:
        return self.cluster.folder.node / "pods"

    def kill(self, component: str) -> None:
        """SIGKILL to a process of the cluster; returns when it is dead."""
        pid = self._component(component).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_for(f"{component} is dead", lambda: not self._component(component).is_alive)

    def _component(self, name: str) -> ComponentStatus:
        return next(one for one in self.cluster.status().components if one.name == name)

    def apply(self, *manifests: Json) -> None:
        self.cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def get(self, kind: str, name: str) -> Json:
        """The object, or nothing."""
        text = self.cluster.kubectl("get", kind, name, "--ignore-not-found", "-o", "json")
        found: Json = json.loads(text) if text.strip() else {}
        return found

    def state(self, pod: str) -> Json:
        """The state of the pod's first container."""
        statuses = (self.get("pod", pod).get("status") or {}).get("containerStatuses") or [{}]
        found: Json = statuses[0].get("state") or {}
        return found

    def wait(self, what: str, *condition: str, timeout: int = 60) -> None:
        command = ("wait", f"--timeout={timeout}s", *condition, what)
        self.cluster.kubectl(*command, timeout_s=timeout + 20)

    def wait_ready(self, pod: str) -> None:
        self.wait(f"pod/{pod}", "--for=condition=Ready")

    def events(self, pod: str) -> list[str]:
        chosen = f"--field-selector=involvedObject.name={pod}"
        items = json.loads(self.cluster.kubectl("get", "events", chosen, "-o", "json"))["items"]
        return [f"{one['reason']}: {one['message']}" for one in items]


def container(script: str, **fields: Any) -> Json:
    return {"name": "c", "image": "test/sh:1", "args": [script], **fields}


def pod(name: str, *containers: Json, **spec: Any) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 2, "containers": list(containers), **spec},
    }
