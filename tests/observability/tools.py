"""Where the rules and dashboards are, and the programs that judge them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/terrace"
RULES = sorted((CHART / "files/rules").glob("*.yaml"))
DASHBOARDS = sorted((CHART / "files/dashboards").glob("*.json"))


def program(name: str) -> str:
    """The path of one of Prometheus' programs; without it the test is skipped."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on the PATH; Debian: apt-get install prometheus")
    return found


def promtool(*arguments: str, text: str = "") -> str:
    """What promtool says; fails the test when promtool fails."""
    done = subprocess.run(
        [program("promtool"), *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def rules(*files: Path) -> list[dict[str, Any]]:
    """Alerting and recording rules of these files, by default of all."""
    contents = (yaml.safe_load(path.read_text()) for path in files or RULES)
    return [rule for file in contents for group in file["groups"] for rule in group["rules"]]


def alerts(*files: Path) -> dict[str, dict[str, Any]]:
    """Alerting rules by name."""
    return {rule["alert"]: rule for rule in rules(*files) if "alert" in rule}


def dashboard(path: Path) -> dict[str, Any]:
    """One dashboard."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels that show data: rows are only headings."""
    return [panel for panel in board["panels"] if panel["type"] not in ("row", "text")]


def expressions(board: dict[str, Any]) -> list[str]:
    """The PromQL of all its panels."""
    return [target["expr"] for panel in panels(board) for target in panel["targets"]]
