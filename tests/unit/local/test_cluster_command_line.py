"""``terrace local`` where there is no cluster: what a newcomer sees first."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from terrace.cli.local import app
from terrace.local.errors import LocalClusterError

if TYPE_CHECKING:
    from pathlib import Path

RUN = CliRunner()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_status_of_nothing_says_how_to_make_a_cluster() -> None:
    answer = RUN.invoke(app, ["status"])
    assert answer.exit_code == 0
    assert "make one with `terrace local up`" in answer.output


def test_status_of_nothing_as_json_is_an_empty_list() -> None:
    assert json.loads(RUN.invoke(app, ["status", "-o", "json"]).output) == []


@pytest.mark.parametrize("command", [["status", "-n", "x"], ["logs", "-n", "x"], ["kubeconfig"]])
def test_a_cluster_that_is_not_there_is_an_error(command: list[str]) -> None:
    answer = RUN.invoke(app, command)
    assert isinstance(answer.exception, LocalClusterError)
    assert "there is no local cluster" in str(answer.exception)


def test_taking_down_nothing_is_no_error() -> None:
    answer = RUN.invoke(app, ["down", "-n", "x"])
    assert answer.exit_code == 0
    assert "no local cluster 'x'" in answer.output
    assert RUN.invoke(app, ["down", "--all"]).output == "no local cluster\n"


def test_a_version_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    answer = RUN.invoke(app, ["up", "--emulated-version", "new"])
    assert str(answer.exception) == "--emulated-version 'new' is no version such as 1.34"
    assert list(tmp_path.iterdir()) == []
