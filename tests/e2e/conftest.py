"""One local cluster with the chart and the minimal example, for all end-to-end tests."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from support.chain import ROOT, Chain
from support.clusters import running_cluster
from terrace.cli.demo import install
from terrace.local.state import ClusterOptions

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """The demo's chain, up and Ready; taken down at the end."""
    images = tmp_path_factory.mktemp("images") / "images.json"
    images.write_text(json.dumps({"test/sh": ["/bin/sh"]}))
    options = ClusterOptions(fsync=False, images=str(images))
    with running_cluster("e2e", tmp_path_factory, options) as cluster:
        install(cluster, ROOT)
        cluster.kubectl("apply", "-f", str(ROOT / "examples/01-minimal"))
        wait = ("wait", "--for=condition=Ready", "im/demo", "--timeout=180s")
        cluster.kubectl(*wait, timeout_s=200)
        yield Chain(cluster)
