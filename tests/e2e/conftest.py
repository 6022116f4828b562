"""One local cluster with the chart and the minimal example, for all end-to-end tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from support.chain import ROOT, Chain
from terrace.cli.demo import install
from terrace.local.cluster import LocalCluster
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """The demo's chain, up and Ready; taken down at the end."""
    folder = tmp_path_factory.mktemp("e2e")
    images = folder / "images.json"
    images.write_text(json.dumps({"test/sh": ["/bin/sh"]}))
    options = ClusterOptions(fsync=False, images=str(images))
    cluster = LocalCluster("e2e", directory=folder / "cluster", options=options)
    cluster.up()
    try:
        install(cluster, ROOT)
        cluster.kubectl("apply", "-f", str(ROOT / "examples/01-minimal"))
        cluster.kubectl("wait", "--for=condition=Ready", "im/demo", "--timeout=180s")
        yield Chain(cluster)
    finally:
        cluster.down()
