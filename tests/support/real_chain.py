"""The whole system on real nodes: our images, the chart by helm, clients through the Service."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from build.oci import renamed
from support.chain import ROOT, Chain, pod_with_claim
from support.images import ARCHIVES, NAMES
from terrace.cli.demo import NAMESPACE

if TYPE_CHECKING:
    from pathlib import Path

    from terrace.local.cluster import LocalCluster

REGISTRY = "localhost"


class RealChain(Chain):
    """As Chain, but its gateway is the Service that clients in the cluster use."""

    @property
    def url(self) -> str:
        """Base URL of the gateway's Service."""
        service = self.get("service", "terrace-gateway", NAMESPACE)
        return f"http://{service['spec']['clusterIP']}/v1"

    def install(self, tag: str = "") -> None:
        """Install or upgrade the chart with our images, and wait until it serves."""
        values = {"image": {"registry": REGISTRY, "tag": tag}}
        self.cluster.install_chart(ROOT / "charts/terrace", values, namespace=NAMESPACE)
        for name in ("operator", "gateway"):
            self.cluster.kubectl(
                "rollout", "status", f"deployment/terrace-{name}", "-n", NAMESPACE,
                "--timeout=180s", timeout_s=200,
            )  # fmt: skip

    def loader(self, claim: str, file: Path) -> dict[str, Any]:
        """The pod that copies ``file`` from this machine: the runtime's image has no shell."""
        copy = f"import shutil; shutil.copy('/file', '/claim/{file.name}')"
        container = {
            "image": image_name("runtime"),
            "command": ["/opt/terrace/bin/python", "-c", copy],
            "securityContext": {"runAsUser": 0},
            "volumeMounts": [{"name": "file", "mountPath": "/file"}],
        }
        source = {"name": "file", "hostPath": {"path": str(file), "type": "File"}}
        return pod_with_claim(claim, container, source)

    def wait_ready(self, name: str, timeout_s: int = 180) -> None:
        """Wait as a user does."""
        self.cluster.kubectl(
            "wait", "--for=condition=Ready", f"im/{name}", f"--timeout={timeout_s}s",
            timeout_s=timeout_s + 20,
        )  # fmt: skip

    def uids(self, *names: str) -> set[str]:
        """The pods of these models."""
        return {pod["metadata"]["uid"] for name in names for pod in self.pods(name)}


def archives() -> dict[str, Path]:
    """Image name -> OCI archive, as ``make image-archives`` left them."""
    listed = ARCHIVES / "images.json"
    if not listed.is_file():
        pytest.fail(f"there is no {listed}: run make image-archives", pytrace=False)
    assert set(json.loads(listed.read_text())["images"]) == set(NAMES)
    return {name: ARCHIVES / f"{name}.tar" for name in NAMES}


def image_name(name: str) -> str:
    """As nodes know the image ``name``."""
    images: dict[str, Any] = json.loads((ARCHIVES / "images.json").read_text())["images"]
    return str(images[name]["name"])


def load_as(cluster: LocalCluster, folder: Path, name: str, reference: str) -> None:
    """The image ``name`` into all nodes under another name as well; ``folder`` is for its file."""
    archive = folder / f"{name}.tar"
    renamed(archives()[name], reference, archive)
    cluster.load_images([archive])
    archive.unlink()


def load_images(cluster: LocalCluster) -> None:
    """Our three images into all nodes."""
    cluster.load_images(list(archives().values()))
