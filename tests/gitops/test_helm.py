"""``helm --wait`` waits for pools and models as for Deployments: by kstatus, built into helm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cluster.controller_kubelet import running
from gitops.applying import placed, rendered
from gitops.evaluators import EXAMPLES
from support.controller_objects import condition, fetched, not_fetched
from terrace.local.errors import CommandError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster.controller_kubelet import Kubelet
    from gitops.git import Git

MODELS = EXAMPLES / "01-minimal"


@pytest.fixture
def chart(tmp_path: Path, git: Git, kubelet: Kubelet) -> Iterator[Path]:
    """A chart of nothing but the minimal example."""
    folder = tmp_path / "models"
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: models\nversion: 0.1.0\n")
    for file in MODELS.glob("*.yaml"):
        (folder / "templates" / file.name).write_text(file.read_text())
    yield folder
    kubelet.serve, kubelet.outcome = lambda _pod: None, lambda _model: fetched()


def install(git: Git, chart: Path, namespace: str, timeout: str) -> None:
    arguments = ("--namespace", namespace, "--create-namespace", "--wait", "--timeout", timeout)
    git.cluster.tools.helm("install", "models", str(chart), *arguments, timeout_s=240)


def readiness(git: Git, namespace: str) -> list[str]:
    live = [git.applier.live(each) for each in placed(rendered(git.cluster, MODELS), namespace)]
    return [condition(each, "Ready").get("status", "") for each in live]


def test_helm_returns_when_pool_and_model_are_ready(git: Git, chart: Path) -> None:
    install(git, chart, "helm-ready", "3m")
    assert readiness(git, "helm-ready") == ["True", "True"]
    git.cluster.tools.helm("uninstall", "models", "--namespace", "helm-ready")


def test_helm_does_not_take_a_starting_model_for_a_ready_one(
    git: Git, chart: Path, kubelet: Kubelet
) -> None:
    kubelet.serve = lambda pod: running(pod, ready=False)
    with pytest.raises(CommandError, match=r"(?s)InProgress.*demo|demo.*InProgress"):
        install(git, chart, "helm-starting", "30s")
    assert readiness(git, "helm-starting")[1] != "True"
    git.cluster.tools.helm("uninstall", "models", "--namespace", "helm-starting")


def test_helm_gives_up_at_once_where_waiting_cannot_help(
    git: Git, chart: Path, kubelet: Kubelet
) -> None:
    kubelet.outcome = lambda _model: not_fetched("InvalidModel", "no GGUF magic", permanent=True)
    with pytest.raises(CommandError, match=r"(?s)Failed.*demo|demo.*Failed"):
        install(git, chart, "helm-stuck", "10m")  # Longer than install() lets it take.
    git.cluster.tools.helm("uninstall", "models", "--namespace", "helm-stuck")
