"""The parts of a pod manifest that a runner acts on, parsed once into frozen values. Pure.

Owns: which fields are read, their Kubernetes defaults, and a clear error for those that a host
process cannot honour. Does not own: what they cause. Next: ``pod.py`` and ``container.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

Json = dict[str, Any]

TERMINATION_LOG = "/dev/termination-log"
DEFAULT_GRACE_S = 30.0


class InvalidPodError(ValueError):
    """A manifest that this runner cannot run; the message names the field."""


class RestartPolicy(StrEnum):
    """When a container that ended is started again."""

    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"


@dataclass(frozen=True)
class Mount:
    """One ``volumeMounts`` entry."""

    volume: str
    path: str
    sub_path: str = ""
    sub_path_expression: str = ""
    is_read_only: bool = False


@dataclass(frozen=True)
class Action:
    """What a probe or a hook does: exactly one of the four is set."""

    http: Json | None = None
    tcp: Json | None = None
    command: tuple[str, ...] = ()
    sleep_s: float | None = None


@dataclass(frozen=True)
class Probe:
    """One probe, times in seconds, with the API's defaults."""

    action: Action
    initial_delay_s: float = 0.0
    period_s: float = 10.0
    timeout_s: float = 1.0
    success_threshold: int = 1
    failure_threshold: int = 3
    grace_s: float | None = None
    """Overrides the pod's termination grace when this probe ends the container."""


@dataclass(frozen=True)
class Container:
    """One container of either list."""

    name: str
    image: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[Json, ...] = ()
    env_from: tuple[Json, ...] = ()
    working_dir: str = ""
    mounts: tuple[Mount, ...] = ()
    ports: Mapping[str, int] = field(default_factory=dict)
    requests: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    startup: Probe | None = None
    readiness: Probe | None = None
    liveness: Probe | None = None
    post_start: Action | None = None
    pre_stop: Action | None = None
    message_path: str = TERMINATION_LOG
    message_falls_back_to_logs: bool = False
    is_sidecar: bool = False
    """An init container with restartPolicy Always: starts in order, then runs beside the rest."""


@dataclass(frozen=True)
class Pod:
    """One pod. ``manifest`` stays at hand for the downward API and the status."""

    manifest: Json
    namespace: str
    name: str
    uid: str
    restart_policy: RestartPolicy
    grace_s: float
    deadline_s: float | None
    service_account: str
    volumes: Mapping[str, Json]
    init_containers: tuple[Container, ...]
    containers: tuple[Container, ...]

    @property
    def all_containers(self) -> tuple[Container, ...]:
        """Init containers, then containers."""
        return self.init_containers + self.containers


def parse_pod(manifest: Json) -> Pod:
    """Parses a manifest as the API server stores it (defaults are filled in where absent).

    Raises:
        InvalidPodError: a field is missing, or asks for something no host process can do.
    """
    meta, spec = manifest.get("metadata") or {}, manifest.get("spec") or {}
    if not meta.get("name") or not spec.get("containers"):
        raise InvalidPodError("metadata.name and spec.containers must be set")
    return Pod(
        manifest=manifest,
        namespace=meta.get("namespace") or "default",
        name=meta["name"],
        uid=meta.get("uid") or meta["name"],
        restart_policy=RestartPolicy(spec.get("restartPolicy") or "Always"),
        grace_s=float(spec.get("terminationGracePeriodSeconds") or 0)
        if spec.get("terminationGracePeriodSeconds") is not None
        else DEFAULT_GRACE_S,
        deadline_s=spec.get("activeDeadlineSeconds"),
        service_account=spec.get("serviceAccountName") or "default",
        volumes={volume["name"]: volume for volume in spec.get("volumes") or ()},
        init_containers=tuple(
            _container(entry, f"spec.initContainers[{place}]")
            for place, entry in enumerate(spec.get("initContainers") or ())
        ),
        containers=tuple(
            _container(entry, f"spec.containers[{place}]")
            for place, entry in enumerate(spec["containers"])
        ),
    )


def _container(entry: Json, where: str) -> Container:
    resources, lifecycle = entry.get("resources") or {}, entry.get("lifecycle") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    return Container(
        name=entry["name"],
        image=entry.get("image") or "",
        command=tuple(entry.get("command") or ()),
        args=tuple(entry.get("args") or ()),
        env=tuple(entry.get("env") or ()),
        env_from=tuple(entry.get("envFrom") or ()),
        working_dir=entry.get("workingDir") or "",
        mounts=tuple(_mount(mount) for mount in entry.get("volumeMounts") or ()),
        ports={
            port["name"]: port["containerPort"]
            for port in entry.get("ports") or ()
            if port.get("name")
        },
        requests={key: str(value) for key, value in requests.items()},
        limits={key: str(value) for key, value in limits.items()},
        startup=_probe(entry.get("startupProbe"), f"{where}.startupProbe"),
        readiness=_probe(entry.get("readinessProbe"), f"{where}.readinessProbe"),
        liveness=_probe(entry.get("livenessProbe"), f"{where}.livenessProbe"),
        post_start=_action(lifecycle.get("postStart"), f"{where}.lifecycle.postStart"),
        pre_stop=_action(lifecycle.get("preStop"), f"{where}.lifecycle.preStop"),
        message_path=entry.get("terminationMessagePath") or TERMINATION_LOG,
        message_falls_back_to_logs=entry.get("terminationMessagePolicy") == "FallbackToLogsOnError",
        is_sidecar=entry.get("restartPolicy") == RestartPolicy.ALWAYS,
    )


def _mount(entry: Json) -> Mount:
    return Mount(
        volume=entry["name"],
        path=entry["mountPath"],
        sub_path=entry.get("subPath") or "",
        sub_path_expression=entry.get("subPathExpr") or "",
        is_read_only=bool(entry.get("readOnly")),
    )


def _action(entry: Json | None, where: str) -> Action | None:
    if not entry:
        return None
    if "httpGet" in entry:
        return Action(http=entry["httpGet"])
    if "tcpSocket" in entry:
        return Action(tcp=entry["tcpSocket"])
    if "exec" in entry:
        return Action(command=tuple(entry["exec"].get("command") or ()))
    if "sleep" in entry:
        return Action(sleep_s=float(entry["sleep"]["seconds"]))
    raise InvalidPodError(f"{where}: the host node knows httpGet, tcpSocket and exec, not grpc")


def _probe(entry: Json | None, where: str) -> Probe | None:
    action = _action(entry, where)
    if action is None or entry is None:
        return None
    return Probe(
        action=action,
        initial_delay_s=float(entry.get("initialDelaySeconds") or 0),
        period_s=float(entry.get("periodSeconds") or 10),
        timeout_s=float(entry.get("timeoutSeconds") or 1),
        success_threshold=int(entry.get("successThreshold") or 1),
        failure_threshold=int(entry.get("failureThreshold") or 3),
        grace_s=entry.get("terminationGracePeriodSeconds"),
    )
