"""Clusters for the length of a block, each under a name of its own."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

from terrace.local.cluster import LocalCluster
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


def cluster_name(what: str) -> str:
    """A name that no other run has had: one that was killed leaves its names on the machine."""
    return f"test-{what}-{secrets.token_hex(4)}"


@contextmanager
def running_cluster(
    name: str, folders: pytest.TempPathFactory, options: ClusterOptions | None = None
) -> Iterator[LocalCluster]:
    """A cluster that is up; by default a control plane without nodes. Down at the end."""
    cluster = LocalCluster(
        cluster_name(name),
        directory=folders.mktemp(name),
        options=options or ClusterOptions(nodes=0, fsync=False),
        report=print,
    )
    cluster.up()
    try:
        yield cluster
    finally:
        cluster.down()
