"""A running local cluster for the tests of this folder: one per session, real in every part."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from terrace.local.cluster import LocalCluster
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def control_plane(
    tmp_path_factory: pytest.TempPathFactory, kubernetes: str | None
) -> Iterator[LocalCluster]:
    """API server, etcd, controller manager and scheduler; no node, so no pod ever starts."""
    options = ClusterOptions(nodes=0, audit=True, fsync=False, emulated_version=kubernetes)
    yield from _running("control-plane", tmp_path_factory, options)


@pytest.fixture(scope="session")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, kubernetes: str | None
) -> Iterator[LocalCluster]:
    """The same with the host node: pods run as processes of this machine."""
    options = ClusterOptions(nodes=1, audit=True, fsync=False, emulated_version=kubernetes)
    yield from _running("cluster", tmp_path_factory, options)


def _running(
    name: str, folders: pytest.TempPathFactory, options: ClusterOptions
) -> Iterator[LocalCluster]:
    folder = folders.mktemp(name)
    running = LocalCluster(f"test-{name}-{os.getpid()}", directory=folder, options=options)
    running.up()
    try:
        yield running
    finally:
        running.down()
