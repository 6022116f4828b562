"""One cluster with two real nodes for all tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.chain import ROOT
from support.clusters import running_cluster
from support.real_chain import RealChain, load_images
from support.tiny_image import tiny_image
from terrace.local.kubelets import why_not
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.local.cluster import LocalCluster

# Checks that hold on the host node too are imported from there.
for module in ("answers", "disk_tier", "draft_and_adapters", "failures", "rollout"):
    pytest.register_assert_rewrite(f"e2e.test_{module}")


@pytest.fixture(scope="session")
def kubelet_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Nodes ``node0`` and ``node1`` with kubelet and containerd; skips where there can be none."""
    obstacle = why_not()
    if obstacle is not None:
        pytest.skip(obstacle)
    options = ClusterOptions(nodes=0, kubelets=2, fsync=False)
    with running_cluster("kubelet", tmp_path_factory, options) as made:
        yield made


@pytest.fixture(scope="session")
def tiny_image_loaded(
    kubelet_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> LocalCluster:
    """The same cluster with the image ``support.tiny_image.IMAGE`` in both nodes."""
    kubelet_cluster.load_images([tiny_image(tmp_path_factory.mktemp("image"))])
    return kubelet_cluster


@pytest.fixture(scope="session")
def chain(kubelet_cluster: LocalCluster) -> RealChain:
    """Our images on both nodes, the chart installed by helm, the minimal example Ready."""
    load_images(kubelet_cluster)
    made = RealChain(kubelet_cluster)
    made.install()
    kubelet_cluster.kubectl("apply", "-f", str(ROOT / "examples/01-minimal"))
    made.wait_ready("demo")
    return made
