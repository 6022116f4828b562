"""A node is drained: what ran there runs on the other, and answers as before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from e2e.test_failures import answers_again, ask
from e2e.test_rollout import Traffic
from support.chain import model
from support.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.real_chain import RealChain

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def shared(chain: RealChain, tmp_path: Path) -> Iterator[RealChain]:
    """A pool whose model files every node reaches, as on NFS: both nodes see this folder."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "shared"},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "hostPath": {"path": str(folder), "type": "Directory"},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared", "namespace": "default"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": "",
            "volumeName": "shared",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    pool = {
        "apiVersion": "terrace.dev/v1alpha1",
        "kind": "InferencePool",
        "metadata": {"name": "shared", "namespace": "default"},
        "spec": {"flavors": [{"name": "cpu"}], "modelCache": {"claimName": "shared"}},
    }
    chain.apply(volume, claim, pool)
    yield chain
    chain.delete("im", "roaming")
    chain.delete("ipool", "shared")
    chain.delete("pvc", "shared")
    chain.delete("pv", "shared")


def test_a_drained_node_s_replica_answers_from_the_other(shared: RealChain) -> None:
    chain = shared
    chain.apply(model("roaming", poolRef={"name": "shared"}))
    chain.wait_ready("roaming")
    (pod,) = chain.pods("roaming")
    node = pod["spec"]["nodeName"]
    try:
        chain.cluster.kubectl(
            "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force",
            "--timeout=150s", timeout_s=180,
        )  # fmt: skip

        def elsewhere() -> dict[str, Any]:
            found = [
                p for p in chain.pods("roaming") if p["spec"].get("nodeName") not in {node, None}
            ]
            ready = chain.get("im", "roaming").get("status", {}).get("readyReplicas") == 1
            return found[0] if found and ready else {}

        moved = wait_for("the replica on the other node", elsewhere, timeout=120, every=0.3)
        assert moved["metadata"]["name"] == pod["metadata"]["name"]

        # The gateway may have moved too. Until kube-proxy has heard of it, the Service leads some
        # connections to where it was.
        def answers(times: int) -> bool:
            return all(ask(chain, "roaming") for _ in range(times))

        wait_for("answers by every connection", lambda: answers(20), timeout=120, every=0.3)
        with Traffic(chain.url, "roaming", clients=2) as traffic:
            wait_for("answers", lambda: traffic.answers > 3)
        assert not traffic.failures
    finally:
        chain.cluster.kubectl("uncordon", node)
    # Its files lie on the drained node, so this one waited for the node to come back.
    answers_again(chain)
    chain.wait_ready("demo")
