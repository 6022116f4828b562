"""docs/compatibility.md says what the chart enforces and what the targets run."""

from __future__ import annotations

import re
import tomllib

from build.source import REPOSITORY
from terrace.local import versions

PAGE = (REPOSITORY / "docs/compatibility.md").read_text()


def minor(version: str) -> str:
    return ".".join(version.removeprefix("v").split(".")[:2])


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match, pattern
    return str(match[1])


def rows(word: str) -> list[str]:
    """First cells of the Kubernetes table whose second one is ``word``."""
    return re.findall(rf"^\| ([\d., ]+) \| {word} \|", PAGE, re.MULTILINE)


def test_the_oldest_kubernetes_is_the_same_in_chart_page_and_target() -> None:
    chart = (REPOSITORY / "charts/terrace/Chart.yaml").read_text()
    oldest = found(r'^kubeVersion: ">=(1\.\d+)\.0-0"$', chart)
    assert f"installs on Kubernetes {oldest} and newer" in PAGE
    assert oldest == found(r"^KUBERNETES := (\S+)$", (REPOSITORY / "Makefile").read_text())
    assert rows("every change") == [minor(versions.KUBERNETES_VERSION), oldest]
    quickstart = (REPOSITORY / "docs/quickstart.md").read_text()
    assert found(r"Kubernetes (1\.\d+) or newer", quickstart) == oldest


def test_the_page_names_no_version_between_that_was_forgotten() -> None:
    newest, oldest = (int(row.split(".")[1]) for row in rows("every change"))
    between = [f"1.{number}" for number in range(oldest + 1, newest)]
    assert rows("by hand") == [", ".join(between)]


def test_the_page_names_the_helms_that_run() -> None:
    helm3 = found(r"helm\.sh/helm/v3 v(3\.\d+)", (REPOSITORY / "tests/chart/go/go.mod").read_text())
    assert f"run under Helm {helm3} and Helm {minor(versions.HELM_VERSION)}" in PAGE


def test_the_page_names_the_oldest_python() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    oldest = project["requires-python"].removeprefix(">=")
    assert f"{oldest} or newer for the command line" in PAGE
