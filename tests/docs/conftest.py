"""One local cluster with Terrace installed, for the commands and manifests of the documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.chain import ROOT, Chain
from support.clusters import cluster_name
from terrace.cli.demo import install
from terrace.local.cluster import LocalCluster
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """Control plane, host node, operator and gateway, all real; taken down at the end."""
    folder, options = tmp_path_factory.mktemp("docs"), ClusterOptions(fsync=False)
    cluster = LocalCluster(cluster_name("docs"), directory=folder / "cluster", options=options)
    cluster.up()
    try:
        install(cluster, ROOT)
        yield Chain(cluster)
    finally:
        cluster.down()
