"""The Node object of this machine. Pure but for ``machine()``, which reads it.

Owns: labels, capacity, allocatable, conditions, nodeInfo, the Lease. Does not own: writing them
(``node_heart.py``).
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from terrace.local.node_names import HOST_NODE_LABEL

Json = dict[str, Any]

LEASE_SECONDS = 40
MAX_PODS = 110
_RESERVED_MEMORY_BYTES = 512 * 1024 * 1024
"""Kept from pods: the control plane of the local cluster runs on the same machine."""
_RESERVED_DISK_SHARE = 0.1
_LEAST_MEMORY_BYTES = 100 * 1024 * 1024
_LEAST_DISK_BYTES = 1024 * 1024 * 1024
_LEAST_PIDS = 500
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Machine:
    """What this machine has."""

    num_cpus: int
    memory_bytes: int
    disk_bytes: int
    architecture: str
    kernel: str
    os_image: str
    boot_id: str
    machine_id: str


@dataclass(frozen=True)
class Pressures:
    """What this machine is short of: the scheduler then sends no more pods."""

    memory: bool = False
    disk: bool = False
    pids: bool = False


def machine(folder: Path) -> Machine:
    """Reads this machine; ``folder`` lies on the disk that pods write to."""
    return Machine(
        num_cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        disk_bytes=shutil.disk_usage(folder).total,
        architecture=_ARCHITECTURES.get(platform.machine(), platform.machine()),
        kernel=platform.release(),
        os_image=_os_image(),
        boot_id=_text("/proc/sys/kernel/random/boot_id"),
        machine_id=_text("/etc/machine-id"),
    )


def capacity(found: Machine) -> Json:
    """status.capacity."""
    return {
        "cpu": str(found.num_cpus),
        "memory": f"{found.memory_bytes // 1024}Ki",
        "ephemeral-storage": f"{found.disk_bytes // 1024}Ki",
        "pods": str(MAX_PODS),
    }


def allocatable(found: Machine) -> Json:
    """status.allocatable: capacity less what the local control plane needs."""
    reserved = min(_RESERVED_MEMORY_BYTES, found.memory_bytes // 4)
    return capacity(found) | {
        "memory": f"{(found.memory_bytes - reserved) // 1024}Ki",
        "ephemeral-storage": f"{int(found.disk_bytes * (1 - _RESERVED_DISK_SHARE)) // 1024}Ki",
    }


def node_object(name: str, found: Machine) -> Json:
    """The Node to create: metadata and spec."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": found.architecture,
                HOST_NODE_LABEL: "true",
            },
            "annotations": {
                "terrace.dev/host-node-runs": "pods as host processes, in place of kubelet and a"
                " container runtime",
            },
        },
        "spec": {},
    }


def pressures(folder: Path) -> Pressures:
    """Reads this machine again; ``folder`` lies on the disk that pods write to."""
    numbers = _text("/proc/loadavg").split()[3].partition("/")[2]
    limit = _text("/proc/sys/kernel/pid_max")
    return Pressures(
        memory=_available_memory() < _LEAST_MEMORY_BYTES,
        disk=shutil.disk_usage(folder).free < _LEAST_DISK_BYTES,
        pids=int(limit or 1 << 22) - int(numbers or 0) < _LEAST_PIDS,
    )


def node_status(
    found: Machine,
    pressed: Pressures,
    address: str,
    port: int,
    moment: datetime,
    version: str,
) -> Json:
    """Status of the Node at ``moment``; ``port`` is the kubelet API's."""
    stamp = _timestamp(moment)
    return {
        "capacity": capacity(found),
        "allocatable": allocatable(found),
        "addresses": [
            {"type": "InternalIP", "address": address},
            {"type": "Hostname", "address": address},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "nodeInfo": {
            "machineID": found.machine_id,
            "systemUUID": found.machine_id,
            "bootID": found.boot_id,
            "kernelVersion": found.kernel,
            "osImage": found.os_image,
            "containerRuntimeVersion": f"terrace-host-process://{version}",
            "kubeletVersion": f"v{version}-terrace-host-node",
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": found.architecture,
        },
        "conditions": [
            _pressure("MemoryPressure", stamp, is_pressed=pressed.memory),
            _pressure("DiskPressure", stamp, is_pressed=pressed.disk),
            _pressure("PIDPressure", stamp, is_pressed=pressed.pids),
            _condition("Ready", "True", "HostNodeReady", stamp)
            | {"message": "runs pods as host processes (no kubelet, no container runtime)"},
        ],
    }


def keep_transitions(status: Json, earlier: Json) -> Json:
    """``status`` with the transition times of those conditions that did not change."""
    before = {entry["type"]: entry for entry in earlier.get("conditions") or ()}
    for entry in status["conditions"]:
        old = before.get(entry["type"])
        if old and old.get("status") == entry["status"] and old.get("lastTransitionTime"):
            entry["lastTransitionTime"] = old["lastTransitionTime"]
    return status


def lease_object(name: str, node_uid: str, moment: datetime) -> Json:
    """The Lease whose renewal says that the node lives."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "namespace": "kube-node-lease",
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node_uid}
            ],
        },
        "spec": {
            "holderIdentity": name,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": micro_time(moment),
        },
    }


def micro_time(moment: datetime) -> str:
    """A MicroTime as the API wants it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _condition(kind: str, status: str, reason: str, stamp: str) -> Json:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": "",
        "lastHeartbeatTime": stamp,
        "lastTransitionTime": stamp,
    }


def _pressure(kind: str, stamp: str, *, is_pressed: bool) -> Json:
    if is_pressed:
        return _condition(kind, "True", f"HostNodeHas{kind}", stamp)
    return _condition(kind, "False", f"HostNodeHasNo{kind}", stamp)


def _available_memory() -> int:
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _LEAST_MEMORY_BYTES


def _os_image() -> str:
    for line in _text("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return "Linux"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
