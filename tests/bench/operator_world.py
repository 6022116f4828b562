"""A control plane with simulated nodes, pools and models, for the benchmarks of the operator.

Owns: the cluster's programs and settings, the objects that users make. Does not own: kwok
(``operator_player.py``), measuring. kwok renews each node's lease every 100 s instead of 10 s: on
two cores, a thousand kubelets' heartbeats would take half of what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.operator_player import play
from bench.operator_requests import MERGE, AuditLog, Client, Manifest, audit_policy
from build.workshop import say
from cluster.controller_api import Api
from cluster.controller_looks import get
from cluster.controller_operator import SYSTEM, Operator, Operators
from support.controller_objects import MODEL_PATH, condition, facts
from terrace.controller.facts import KnownModel, model_status
from terrace.controller.kinds import MODEL, NODE, POD, POOL, STATEFULSET
from terrace.local.binaries import find_binaries
from terrace.local.cluster import LocalCluster
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

USER = f"system:serviceaccount:{SYSTEM}:terrace-operator"
GRACE_S = 600
IN_FLIGHT = 32
"""Of users who create models; the operator and the bare client have 16 workers."""
CLAIM = "models"
OURS, PEER = "ours", "peer"
"""Namespaces."""
Line = dict[str, Any]
"""What a case prints."""


@dataclass(frozen=True)
class Sizes:
    """How large the cluster is."""

    nodes: int = 1000
    pools: int = 200
    models: int = 1000


class World:
    """One running cluster; made by ``running``."""

    def __init__(self, cluster: LocalCluster, folder: Path, sizes: Sizes, audit: Path) -> None:
        self.cluster, self.folder, self.sizes = cluster, folder, sizes
        self.admin = Client(cluster.server, cluster.folder.pki)
        self.audit_path = audit
        self._operators: Operators | None = None

    @property
    def operators(self) -> Operators:
        """Made when it is first asked for: that installs CRDs and roles."""
        if self._operators is None:
            api = Api(self.cluster.server, self.cluster.folder.pki)
            self._operators = Operators(self.cluster, api, self.folder)
        return self._operators

    def peer(self) -> Client:
        """A bare client with the operator's own rights and kind of credentials."""
        token = self.cluster.kubectl("create", "token", "terrace-operator", "-n", SYSTEM).strip()
        return Client(self.cluster.server, self.cluster.folder.pki, token)

    async def add_nodes(self) -> None:
        bodies = [node(index, self.sizes) for index in range(self.sizes.nodes)]
        await in_parallel(
            [partial(self.admin.send, "POST", NODE.path(None), body) for body in bodies]
        )

    async def add_namespace(self, name: str) -> None:
        """With a bound claim for model files, and the pools."""
        await self.admin.send("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        volume, claim = _volume(name)
        await self.admin.send("POST", "/api/v1/persistentvolumes", volume)
        await self.admin.send("POST", f"/api/v1/namespaces/{name}/persistentvolumeclaims", claim)
        bodies = [pool(index) for index in range(self.sizes.pools)]
        await in_parallel(
            [partial(self.admin.send, "POST", POOL.path(name), body) for body in bodies]
        )

    async def add_model(self, namespace: str, index: int) -> str:
        """As a user and as an earlier fetch: the facts are in the status. Returns the uid."""
        body = model(index, self.sizes)
        answer = json.loads(await self.admin.send("POST", MODEL.path(namespace), body))
        path = f"{MODEL.path(namespace)}/{body['metadata']['name']}/status"
        await self.admin.send("PATCH", path, FACTS, MERGE)
        return str(answer["metadata"]["uid"])

    async def settled(self, quiet_s: float = 5.0, limit_s: float = 900) -> None:
        """Wait until nobody has written anything but leases for a while."""
        log, start = AuditLog(self.audit_path), time.monotonic()
        since = start
        while time.monotonic() - since < quiet_s:
            if time.monotonic() - start > limit_s:
                raise TimeoutError(f"not settled within {limit_s:g} s: {await self.counts()}")
            await asyncio.sleep(0.5)
            if [asked for asked in log.news() if asked.resource != "leases"]:
                since = time.monotonic()

    async def num_ready(self, namespace: str) -> int:
        """Models that say Ready."""
        found = await self.admin.get(MODEL.path(namespace))
        return sum(condition(each, "Ready").get("status") == "True" for each in found["items"])

    async def counts(self) -> dict[str, int]:
        """What is there, for messages."""
        return {
            str(kind): await self.admin.count(kind.path(None))
            for kind in (MODEL, STATEFULSET, POD, NODE)
        }


@contextlib.asynccontextmanager
async def running(sizes: Sizes) -> AsyncIterator[World]:
    """A cluster with nodes, CRDs and kwok; all gone at the end."""
    kwok = str(find_binaries(["kwok"], None, say)["kwok"])
    with tempfile.TemporaryDirectory(prefix="terrace-bench-") as root:
        folder = Path(root)
        policy, audit = folder / "policy.json", folder / "audit.log"
        policy.write_text(json.dumps(audit_policy(USER)))
        cluster = LocalCluster(
            f"bench-{os.getpid()}", directory=folder / "cluster", options=_options(policy, audit)
        )
        world, player = None, None
        cluster.up()
        try:
            world = World(cluster, folder, sizes, audit)
            world.operators  # noqa: B018 - installs what a cluster needs before anything else
            player = play(kwok, cluster, folder)
            await world.add_nodes()
            yield world
        finally:
            if world is not None:
                world.operators.stop_all()
                await world.admin.close()
            if player is not None:
                player.kill()
                player.wait()
            cluster.down()


async def in_parallel(calls: Iterable[Callable[[], Any]], limit: int = IN_FLIGHT) -> list[Any]:
    """All calls, so many at a time; their results in order."""
    gate = asyncio.Semaphore(limit)

    async def one(call: Callable[[], Any]) -> Any:
        async with gate:
            return await call()

    return await asyncio.gather(*map(one, calls))


def metric(operator: Operator, name: str) -> float:
    """A sample of the operator's own; 0 where it was never counted."""
    return metrics(operator).get(name, 0.0)


def metrics(operator: Operator) -> dict[str, float]:
    """All samples."""
    pairs = [line.rsplit(" ", 1) for line in get(operator, "/metrics")[1].decode().splitlines()]
    return {pair[0]: float(pair[1]) for pair in pairs if not pair[0].startswith("#")}


def peak_bytes(operator: Operator) -> int:
    """The most memory that the process was resident with."""
    for line in Path(f"/proc/{operator.process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def line_of(case: str, *, is_ok: bool, target: str, **figures: Any) -> Line:
    """The line of a case."""
    load = round(os.getloadavg()[0], 1)
    return {"case": case, "ok": is_ok, "target": target, **figures, "load_average": load}


# Objects ------------------------------------------------------------------------------------------

FACTS: Manifest = {
    "status": {
        "model": model_status(KnownModel(facts(), MODEL_PATH)).model_dump(
            mode="json", by_alias=True, exclude_none=True
        )
    }
}


def node(index: int, sizes: Sizes) -> Manifest:
    """Ready, with devices on every second one; ``group`` is what pools select by."""
    name = f"node-{index:04}"
    amounts = {"cpu": "64", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1Ti"}
    if index % 2:
        amounts["nvidia.com/gpu"] = "8"
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/arch": "amd64",
        "group": f"g{index % sizes.pools}",
        "zone": f"z{index % 4}",
    }
    return {
        "metadata": {"name": name, "labels": labels},
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Simulated"}],
        },
    }


def pool(index: int) -> Manifest:
    """Two flavors: nodes of its own group, else of its zone."""
    flavors = [
        {"name": "own", "nodeSelector": {"group": f"g{index}"}, "host": {"cpu": "200m"}},
        {"name": "zone", "nodeSelector": {"zone": f"z{index % 4}"}, "host": {"cpu": "200m"}},
    ]
    return {
        "apiVersion": POOL.api_version,
        "kind": POOL.kind,
        "metadata": {"name": f"pool-{index:04}"},
        "spec": {"flavors": flavors, "modelCache": {"claimName": CLAIM}},
    }


def model(index: int, sizes: Sizes) -> Manifest:
    """One replica of a small model."""
    return {
        "apiVersion": MODEL.api_version,
        "kind": MODEL.kind,
        "metadata": {"name": model_name(index)},
        "spec": {
            "poolRef": {"name": f"pool-{index % sizes.pools:04}"},
            "source": {"uri": "demo://chat"},
            "context": {"length": 1024, "parallel": 2},
            "replicas": 1,
        },
    }


def model_name(index: int) -> str:
    return f"model-{index:05}"


def _volume(namespace: str) -> tuple[Manifest, Manifest]:
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {
        "metadata": {"name": f"files-{namespace}"},
        "spec": {
            **spec,
            "capacity": {"storage": "1Ti"},
            "hostPath": {"path": "/nowhere"},
            "claimRef": {"namespace": namespace, "name": CLAIM},
        },
    }
    claim = {
        "metadata": {"name": CLAIM},
        "spec": {
            **spec,
            "volumeName": f"files-{namespace}",
            "resources": {"requests": {"storage": "1Ti"}},
        },
    }
    return volume, claim


# Programs ---------------------------------------------------------------------------------------


def _options(policy: Path, audit: Path) -> ClusterOptions:
    return ClusterOptions(
        nodes=0,
        fsync=False,
        extra_args={
            "kube-apiserver": (
                f"--audit-policy-file={policy}",
                f"--audit-log-path={audit}",
                "--audit-log-maxsize=100000",
                # What is measured is the operator, and not the server's fairness to one client.
                "--max-requests-inflight=2000",
                "--max-mutating-requests-inflight=1000",
            ),
            "kube-controller-manager": (
                f"--node-monitor-grace-period={GRACE_S}s",
                "--kube-api-qps=100",
                "--kube-api-burst=200",
            ),
            "etcd": ("--quota-backend-bytes=8589934592",),
        },
    )
