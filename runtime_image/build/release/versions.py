"""Holds the places that state Terrace's version together.

Owns: where the version stands in the source, and the message when two places differ. Does not own:
what the built program says of itself (``make.py`` asks it). No I/O but reading the source.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

from build.workshop import BuildError

if TYPE_CHECKING:
    from pathlib import Path

_APP_VERSION = re.compile(r"""^appVersion:\s*["']?([^"'\s]+)["']?\s*$""", re.MULTILINE)
_HEADING = re.compile(r"^## \[?([^\]\s]+)\]?(?: - (\d{4}-\d{2}-\d{2}))?\s*$", re.MULTILINE)


def agreed_version(source: Path) -> str:
    """The version that every place of ``source`` states. Raises BuildError, naming them all."""
    stated = stated_versions(source)
    if len(set(stated.values())) != 1:
        lines = "\n".join(f"  {version:<12} {place}" for place, version in stated.items())
        raise BuildError(f"these do not state one version:\n{lines}")
    return stated["pyproject.toml"]


def stated_versions(source: Path) -> dict[str, str]:
    """Place -> the version there; ``(none)`` where one is missing."""
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = {"pyproject.toml": str(project["version"])}
    locked = tomllib.loads((source / "uv.lock").read_text(encoding="utf-8"))["package"]
    (own,) = (package for package in locked if package["name"] == project["name"])
    stated["uv.lock"] = str(own["version"])
    for chart in sorted(source.glob("charts/**/Chart.yaml")):
        found = _APP_VERSION.search(chart.read_text(encoding="utf-8"))
        # A subchart need not state one; a chart that users install must.
        if found or chart.parent.parent == source / "charts":
            place = f"{chart.relative_to(source)} (appVersion)"
            stated[place] = found[1] if found else "(none)"
    changelog = source / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8") if changelog.is_file() else ""
    stated["CHANGELOG.md (newest '## [VERSION] - YYYY-MM-DD')"] = newest_released(text)
    return stated


def newest_released(changelog: str) -> str:
    """The version of the first heading that has a date; ``(none)`` without one."""
    dated = (version for version, date in _HEADING.findall(changelog) if date)
    return next(dated, "(none)")


def unreleased_entries(changelog: str) -> int:
    """How many entries wait under ``## [Unreleased]``."""
    match = re.search(
        r"^## \[Unreleased\]\s*$(.*?)(?=^## |\Z)", changelog, re.DOTALL | re.MULTILINE
    )
    return len(re.findall(r"^- ", match[1], re.MULTILINE)) if match else 0
