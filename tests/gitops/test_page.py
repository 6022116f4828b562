"""docs/gitops.md: its commands are run from top to bottom, its table is what the evaluators say."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from cluster.controller_api import eventually
from gitops.applying import example_folders, make_namespace, placed, rendered
from gitops.evaluators import EXAMPLES
from gitops.git import WAIT_S, Git
from gitops.test_health import TABLE
from support.pages import ROOT, Command, page
from terrace.local.binaries import find_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.controller_api import Api
    from terrace.local.cluster import LocalCluster

PAGE = page("docs/gitops.md")
_ROW = re.compile(r"^\| ([a-z][^|]*?) \| (\w+) \| (\w+) \|", re.MULTILINE)


@pytest.fixture
def cluster_of_a_reader(git: Git, api: Api) -> Iterator[LocalCluster]:
    """One that has Argo CD, Flux and External Secrets, or what of them the page needs."""
    for name in ("argocd", "flux-system"):
        make_namespace(api, name)
    yield git.cluster
    for folder in example_folders():
        if folder.startswith("gitops/"):
            git.forget(placed(rendered(git.cluster, EXAMPLES / folder), "default"))


def typed(cluster: LocalCluster, command: Command) -> subprocess.CompletedProcess[str]:
    kubectl = find_binaries(["kubectl"], None, print)["kubectl"]
    path = f"{kubectl.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.text],
        cwd=ROOT,
        env=cluster.tools.environment() | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=WAIT_S * 2,
        check=False,
    )


def shows_nothing(cluster: LocalCluster, command: Command) -> None:
    """It compares status, too, which may change between its two looks."""

    def is_calm() -> bool:
        done = typed(cluster, command)
        assert done.returncode in (0, 1), done.stderr
        return done.stdout == ""

    eventually(is_calm, f"{command}: nothing", timeout_s=WAIT_S)


def test_every_command_does_what_the_page_shows(cluster_of_a_reader: LocalCluster) -> None:
    assert len(PAGE.commands) > 8
    for command in PAGE.commands:
        if command.text.startswith("kubectl diff"):
            shows_nothing(cluster_of_a_reader, command)
            continue
        done = typed(cluster_of_a_reader, command)
        said = f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, said
        for line in command.shown:
            assert line in done.stdout, f"{said}\nwithout {line!r}"


def test_the_table_says_what_the_evaluators_say() -> None:
    rows = {state: (kstatus, argo) for state, kstatus, argo in _ROW.findall(PAGE.text)}
    right = {state: (words[0], words[2]) for state, words in TABLE.items()}
    assert {state: right[state] for state in rows} == rows
    aside = {"scaled to 0 from the start"}
    assert set(rows) | aside == {state for state in right if not state.startswith("pool: ")}


def test_the_page_names_every_state_of_a_pool() -> None:
    for state in TABLE:
        if state.startswith("pool: "):
            assert state.removeprefix("pool: ") in PAGE.text


def test_a_command_that_fails_is_noticed(cluster_of_a_reader: LocalCluster) -> None:
    command = Command("docs/gitops.md", 1, "kubectl get im nobody -n models-dev")
    assert typed(cluster_of_a_reader, command).returncode != 0
