"""What all parts of one running pod share.

Owns: the settings of a runner, and the folders of a pod. Next: ``pod.py`` builds one per pod.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from terrace.local.pods.backoff import DEFAULT_BASE_S, DEFAULT_MAX_S
from terrace.local.pods.logs import MAX_FILE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from terrace.local.pods.downward import Facts
    from terrace.local.pods.images import ImageMap
    from terrace.local.pods.ports import Listener, Sources
    from terrace.local.pods.spec import Pod
    from terrace.local.pods.volumes import Volumes


@dataclass(frozen=True)
class Settings:
    """What is the same for all pods of a runner. Times in seconds."""

    folder: Path
    """Everything of pods lies in ``folder/pods`` and ``folder/logs``."""
    images: Callable[[], ImageMap]
    """Called at every start, so that an edited map takes effect."""
    host_ip: str = "127.0.0.1"
    node_name: str = "localhost"
    allocatable: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables that every container gets (KUBERNETES_SERVICE_HOST and the like)."""
    backoff_base_s: float = DEFAULT_BASE_S
    backoff_max_s: float = DEFAULT_MAX_S
    refresh_s: float = 30.0
    """Between two looks at ConfigMaps, Secrets and tokens of running pods."""
    memory_interval_s: float = 0.1
    max_log_bytes: int = MAX_FILE_BYTES


def pod_folder(settings: Settings, uid: str) -> Path:
    """Where the volumes and container roots of a pod lie."""
    return settings.folder / "pods" / uid


def log_folder(settings: Settings, namespace: str, name: str, uid: str, container: str) -> Path:
    """Where the logs of a container lie; the name is kubelet's."""
    return settings.folder / "logs" / f"{namespace}_{name}_{uid}" / container


@dataclass
class PodContext:
    """One pod while it runs."""

    pod: Pod
    settings: Settings
    facts: Facts
    sources: Sources
    volumes: Volumes
    listener: Listener

    def changed(self) -> None:
        """Tells the listener that the status moved."""
        self.listener.changed()

    def event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Tells the listener what happened."""
        self.listener.event(kind, reason, message)

    def container_folder(self, container: str) -> Path:
        """Holds the container's root and the record of its process."""
        return pod_folder(self.settings, self.pod.uid) / "containers" / container

    def container_root(self, container: str) -> Path:
        """The container's TERRACE_POD_ROOT."""
        return self.container_folder(container) / "root"

    def container_logs(self, container: str) -> Path:
        """The container's log folder."""
        pod = self.pod
        return log_folder(self.settings, pod.namespace, pod.name, pod.uid, container)
