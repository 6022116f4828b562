"""kwok, and how it plays nodes: pods of Jobs end with a model's facts, replicas become ready.

Owns: the stages and starting kwok. Does not own: the cluster (``operator_world.py``).
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import yaml

from support.controller_objects import fetched

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.operator_requests import Manifest
    from terrace.local.cluster import LocalCluster

LEASE_S = 400


def play(kwok: str, cluster: LocalCluster, folder: Path) -> subprocess.Popen[bytes]:
    stages = folder / "stages.yaml"
    stages.write_text(yaml.safe_dump_all(_stages()))
    command = [
        kwok,
        f"--kubeconfig={cluster.kubeconfig}",
        f"--config={stages}",
        "--manage-all-nodes",
        f"--node-lease-duration-seconds={LEASE_S}",
        "--cidr=10.9.0.0/16",
    ]
    with (folder / "kwok.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def _stages() -> Sequence[Manifest]:
    pending = _when(".status.phase", "In", "Pending")
    alive = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
    of_job = _when(".metadata.ownerReferences.[].kind", "In", "Job")
    of_set = _when(".metadata.ownerReferences.[].kind", "In", "StatefulSet")
    message = json.dumps(fetched().model_dump_json(exclude_defaults=True))
    ended = (
        "{exitCode: 0, reason: Completed, startedAt: {{ Now | Quote }}, "
        f"finishedAt: {{{{ Now | Quote }}}}, message: {message}}}"
    )
    running_node = {
        "resourceRef": {"apiGroup": "v1", "kind": "Node"},
        "selector": {"matchExpressions": [_when(".status.phase", "NotIn", "Running")]},
        "next": {"statusTemplate": "phase: Running\n"},
    }
    return [
        # Without a stage for nodes kwok takes care of none, nor of their pods.
        {**_head("node"), "spec": running_node},
        _stage("fetched", [alive, pending, of_job], "Succeeded", "fetch", "terminated", ended),
        _stage(
            "serving",
            [alive, pending, of_set],
            "Running",
            "runtime",
            "running",
            "{startedAt: {{ Now | Quote }}}",
        ),
        {
            **_head("gone"),
            "spec": {
                "resourceRef": {"apiGroup": "v1", "kind": "Pod"},
                "selector": {"matchExpressions": [{**alive, "operator": "Exists"}]},
                "next": {"delete": True},
            },
        },
    ]


def _stage(
    name: str, expressions: list[Manifest], phase: str, container: str, state: str, value: str
) -> Manifest:
    word = "True" if phase == "Running" else "False"
    conditions = "".join(
        f'- {{type: {kind}, status: "{word}", lastTransitionTime: {{{{ Now | Quote }}}}}}\n'
        for kind in ("Ready", "ContainersReady")
    )
    template = (
        f"phase: {phase}\nstartTime: {{{{ Now | Quote }}}}\nconditions:\n{conditions}"
        f"containerStatuses:\n- name: {container}\n  image: none\n  imageID: none\n"
        f"  ready: {word.lower()}\n  restartCount: 0\n  state:\n    {state}: {value}\n"
    )
    return {
        **_head(name),
        "spec": {
            "resourceRef": {"apiGroup": "v1", "kind": "Pod"},
            "selector": {"matchExpressions": expressions},
            "next": {"statusTemplate": template},
        },
    }


def _head(name: str) -> Manifest:
    return {
        "apiVersion": "kwok.x-k8s.io/v1alpha1",
        "kind": "Stage",
        "metadata": {"name": name},
    }


def _when(key: str, operator: str, *values: str) -> Manifest:
    return {"key": key, "operator": operator, "values": list(values)}
