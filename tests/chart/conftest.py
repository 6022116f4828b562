"""Both helms, for every test that renders; a control plane where the API itself is asked."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from chart.programs import NotBuiltError, helms, program
from chart.rendering import Helm
from support.clusters import running_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from terrace.local.cluster import LocalCluster


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build programs before the first test: no test's time limit fits a build."""
    here = os.fspath(session.config.rootpath / "tests/chart")
    if any(os.fspath(item.path).startswith(here) for item in session.items):
        with suppress(NotBuiltError):  # Each test that needs one says so itself.
            helms()
            program("kubeconform")


@pytest.fixture(params=["helm4", "helm3"])
def helm(request: pytest.FixtureRequest) -> Helm:
    """Each test that takes it runs under both."""
    with _or_skip():
        return Helm(helms()[request.param])


@pytest.fixture(scope="session")
def kubeconform() -> Path:
    with _or_skip():
        return program("kubeconform")


@contextmanager
def _or_skip() -> Iterator[None]:
    """In CI a program that is missing is a failure."""
    try:
        yield
    except NotBuiltError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A control plane that nothing was applied to."""
    with running_cluster("chart", tmp_path_factory) as cluster:
        yield cluster
