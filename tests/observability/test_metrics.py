"""What the components tell, as promtool judges it, and the page that lists it."""

from __future__ import annotations

import re

import pytest

from observability.metrics_page import page
from observability.registries import COMPONENTS, all_families
from observability.tools import DASHBOARDS, ROOT, RULES, promtool

FOREIGN = "vllm:"
"""Names of the inference gateway's protocol: their colons are not ours to change."""


@pytest.mark.parametrize("component", COMPONENTS)
def test_promtool_finds_nothing_wrong_with_a_scrape(component: str) -> None:
    lines = COMPONENTS[component]().splitlines()
    text = "".join(f"{line}\n" for line in lines if FOREIGN not in line)
    assert promtool("check", "metrics", text=text).strip() == ""


def test_the_page_of_metrics_is_current() -> None:
    assert (ROOT / "docs/metrics.md").read_text() == page(), "run observability.metrics_page"


def test_every_metric_says_what_it_means() -> None:
    assert [each.name for each in all_families().values() if len(each.text.split()) < 2] == []


def test_no_metric_is_named_that_does_not_exist() -> None:
    """In rules, dashboards and docs."""
    series = {name for each in all_families().values() for name in each.series}
    known = series | {each.name for each in all_families().values()}
    pages = [path for path in (ROOT / "docs").glob("*.md") if "adr" not in path.parts]
    found = {
        (path.name, name)
        for path in (*RULES, *DASHBOARDS, *pages)
        for name in re.findall(
            r"(?<![\w:])terrace_(?:operator|gateway|runtime)_[a-z0-9_]*[a-z0-9](?![\w(|])",
            path.read_text(),
        )
    }
    assert len(found) > 100
    unknown = {(file, name) for file, name in found if name not in known}
    assert unknown == set()
