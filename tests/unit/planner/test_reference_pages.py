"""The references of docs/ are made from the types, and say it all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from terrace.api.model import ModelSpec
from terrace.api.pool import PoolSpec
from terrace.api.schema import structural_schema
from terrace.cli import settings_page
from terrace.planner import config_page, crd_page
from terrace.planner.disruption import DISRUPTION
from terrace_runtime.contract import RuntimeConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DOCS = Path(__file__).parents[3] / "docs"
PAGES = [
    (crd_page.main, "crd-reference.md"),
    (config_page.main, "runtime-config.md"),
    (settings_page.main, "settings.md"),
]


@pytest.mark.parametrize(("main", "name"), PAGES)
def test_the_page_is_the_one_that_the_types_make(
    main: Callable[[Sequence[str]], int], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(DOCS / name), "--check"]) == 0, capsys.readouterr().err


def test_every_field_of_both_kinds_says_what_it_is() -> None:
    for kind in (ModelSpec, PoolSpec):
        found = list(crd_page.fields(structural_schema(kind)))
        assert len(found) > 40
        for field in found:
            assert field.schema.get("description"), field.path


def test_the_reference_has_a_row_for_every_field_that_can_change() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", crd_page.page(), re.MULTILINE)
    for path in DISRUPTION:
        assert path.partition(".spec.")[2] in rows


def test_rows_tell_default_limits_and_what_a_change_is() -> None:
    page = crd_page.page()
    row = next(line for line in page.splitlines() if line.startswith("| `sampling.topP` |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "`sampling.topP`", "number", "0.95", "above 0 to 1", "rolling",
        "Nucleus sampling; 1 is off.",
    ]  # fmt: skip
    assert "| `source.uri` | string | **required** |" in page
    assert "`spec.modelCache.size`: spec.modelCache.size can only grow" in page


def test_every_setting_of_a_replica_says_what_it_is() -> None:
    rows = list(config_page.rows(RuntimeConfig))
    assert len(rows) > 50
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|\n ").split("|")]
        assert len(cells) == 5, row
        assert cells[-1], row


def test_every_setting_of_operator_and_gateway_says_what_it_is() -> None:
    rows = [line for line in settings_page.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 20
    for row in rows:
        assert len(row.strip("| ").split(" | ")[-1].split()) > 2, row
