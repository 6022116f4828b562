"""One cluster with two real nodes for all tests of this folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from support.tiny_image import tiny_image
from terrace.local.cluster import LocalCluster
from terrace.local.kubelets import why_not
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def kubelet_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Nodes ``node0`` and ``node1`` with kubelet and containerd; skips where there can be none."""
    obstacle = why_not()
    if obstacle is not None:
        pytest.skip(obstacle)
    made = LocalCluster(
        f"test-kubelet-{os.getpid()}",
        directory=tmp_path_factory.mktemp("kubelet"),
        options=ClusterOptions(nodes=0, kubelets=2, fsync=False),
        report=print,
    )
    made.up()
    try:
        yield made
    finally:
        made.down()


@pytest.fixture(scope="session")
def tiny_image_loaded(
    kubelet_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> LocalCluster:
    """The same cluster with the image ``support.tiny_image.IMAGE`` in both nodes."""
    kubelet_cluster.load_images([tiny_image(tmp_path_factory.mktemp("image"))])
    return kubelet_cluster
