"""A running local cluster for the tests of this folder: one per session, real in every part."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.clusters import running_cluster
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.local.cluster import LocalCluster


@pytest.fixture(scope="session")
def control_plane(
    tmp_path_factory: pytest.TempPathFactory, kubernetes: str | None
) -> Iterator[LocalCluster]:
    """API server, etcd, controller manager and scheduler; no node, so no pod ever starts."""
    options = ClusterOptions(nodes=0, audit=True, fsync=False, emulated_version=kubernetes)
    with running_cluster("control-plane", tmp_path_factory, options) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, kubernetes: str | None
) -> Iterator[LocalCluster]:
    """The same with the host node: pods run as processes of this machine."""
    options = ClusterOptions(nodes=1, audit=True, fsync=False, emulated_version=kubernetes)
    with running_cluster("cluster", tmp_path_factory, options) as running:
        yield running
