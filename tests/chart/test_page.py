"""docs/chart.md says what values.yaml says, and every value has its words."""

from __future__ import annotations

import pytest

from chart.rendering import ROOT
from chart.values_page import Entry, entries, main, page

PAGE = ROOT / "docs/chart.md"


def test_the_page_is_current() -> None:
    assert main(["--check", str(PAGE)]) == 0


def test_every_value_is_on_the_page() -> None:
    text = page()
    for value in ("crds.keep", "gateway.service.port", "metrics.podMonitor.labels", "nodeRole"):
        assert f"| `{value}` |" in text


def test_maps_of_keys_without_words_are_values_as_a_whole() -> None:
    text = "# Of the pod.\nresources:\n  limits:\n    cpu: 1\n\na:\n  # B's.\n  b: [x]\n"
    assert entries(text) == [
        Entry(("resources",), "Of the pod.", is_leaf=True, default={"limits": {"cpu": 1}}),
        Entry(("a", "b"), "B's.", is_leaf=True, default=["x"]),
    ]


def test_a_value_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.c has no comment"):
        entries("a:\n  # B's.\n  b: 1\n  c: 2\n")
