"""Settings of all tests: in CI, property tests draw the same examples every time. One option:
``--kubernetes 1.33`` runs those that start a control plane against that older version.

A run that fails must fail for the change under test. New examples are drawn at every run elsewhere,
and a counterexample found there becomes an ``@example`` of its test.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kubernetes",
        metavar="X.Y",
        help="the version that control planes emulate (default: the newest that is pinned)",
    )


@pytest.fixture(scope="session")
def kubernetes(pytestconfig: pytest.Config) -> str | None:
    """``ClusterOptions.emulated_version`` of every cluster that a test starts."""
    named: str | None = pytestconfig.getoption("--kubernetes")
    return named


@pytest.fixture(scope="session")
def at_least(kubernetes: str | None) -> Callable[[int], bool]:
    """Whether control planes of this run have at least the features of Kubernetes 1.N."""
    return lambda minor: kubernetes is None or int(kubernetes.partition(".")[2]) >= minor


def pytest_unconfigure() -> None:
    """Close two files that llama_cpp opens at import and leaves to the interpreter's end.

    With warnings as errors, that end complains of them after the last line of the report.
    """
    module = sys.modules.get("llama_cpp._utils")
    for name in ("outnull_file", "errnull_file"):
        file = getattr(module, name, None)
        if file is not None:
            file.close()
