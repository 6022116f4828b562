"""Settings of all tests: in CI, property tests draw the same examples every time. One option:
``--kubernetes 1.33`` runs those that start a control plane against that older version.

A run that fails must fail for the change under test. New examples are drawn at every run elsewhere,
and a counterexample found there becomes an ``@example`` of its test.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants

if TYPE_CHECKING:
    from collections.abc import Callable

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background so, and what tests start and interrupt would
    # inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Workers of one run share the cores, and so do the threads of their engines (docs/adr/0003).
os.environ.setdefault("GOMP_SPINCOUNT", "500")
# How long an example takes says how busy the machine is, and is no fact about the code.
settings.register_profile("terrace", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("terrace")
if os.environ.get("CI"):
    settings.register_profile("ci", settings.default, derandomize=True, database=None)
    settings.load_profile("ci")
    # Constants in the modules that happen to be imported are among the examples, so that these
    # would depend on which tests ran before, and on every line of the code under test.
    assert callable(providers._get_local_constants)
    _no_constants = Constants()
    providers._get_local_constants = lambda: _no_constants


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
