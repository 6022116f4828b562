"""Dashboards that Grafana takes as they are, and queries that fit the metrics they name."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from observability.registries import all_families
from observability.tools import DASHBOARDS, dashboard, expressions, panels, rules

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MAX_BYTES = 256 * 1024
"""A ConfigMap may have 1 MiB, and kubectl apply keeps a copy in an annotation."""
MAX_WIDTH = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
TARGET_LABELS = {"namespace", "pod", "job", "model", "le", "version", "__name__"}
NAME = r"terrace_(?:operator|gateway|runtime)_[a-z0-9_]+|process_[a-z_]+|vllm:[a-z_]+"
RECORDED = {rule["record"] for rule in rules() if "record" in rule}

each_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def queries() -> list[str]:
    """Every PromQL expression of panels and rules."""
    boards = (expressions(dashboard(path)) for path in DASHBOARDS)
    return [*chain.from_iterable(boards), *(rule["expr"] for rule in rules())]


def repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def test_there_are_the_six_dashboards_and_no_two_are_called_the_same() -> None:
    boards = [dashboard(path) for path in DASHBOARDS]
    names = {path.stem for path in DASHBOARDS}
    assert names == {"overview", "model", "gateway", "operator", "runtime", "devices"}
    assert repeated(board["uid"] for board in boards) == []
    assert repeated(board["title"] for board in boards) == []


@each_dashboard
def test_grafana_takes_it(path: Path) -> None:
    board = dashboard(path)
    assert path.stat().st_size < MAX_BYTES
    assert re.fullmatch(r"terrace-[a-z-]{1,32}", board["uid"])  # Grafana takes 40 characters.
    assert board["schemaVersion"] >= 36
    assert repeated(panel["id"] for panel in board["panels"]) == []
    assert repeated(panel["title"] for panel in board["panels"]) == []
    first, *others = board["templating"]["list"]
    assert (first["name"], first["type"]) == ("datasource", "datasource")
    assert all(variable["datasource"] == DATASOURCE for variable in others)
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= MAX_WIDTH, panel["title"]


@each_dashboard
def test_every_panel_has_a_unit_a_description_and_the_data_source_of_choice(path: Path) -> None:
    for panel in panels(dashboard(path)):
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == DATASOURCE
        assert panel["targets"]
        assert repeated(target["refId"] for target in panel["targets"]) == []
        assert all(target["datasource"] == DATASOURCE for target in panel["targets"])


@each_dashboard
def test_panels_do_not_lie_on_each_other(path: Path) -> None:
    cells = [
        (at["x"] + right, at["y"] + down)
        for at in (panel["gridPos"] for panel in dashboard(path)["panels"])
        for right in range(at["w"])
        for down in range(at["h"])
    ]
    assert repeated(cells) == []


@each_dashboard
def test_every_variable_that_is_used_is_declared(path: Path) -> None:
    board = dashboard(path)
    declared = {variable["name"] for variable in board["templating"]["list"]} | {"__rate_interval"}
    used = set(re.findall(r"\$\{?(\w+)", " ".join(expressions(board))))
    assert used <= declared


def test_selectors_name_labels_that_the_metric_has() -> None:
    families = {name: each for each in all_families().values() for name in each.series}
    for query in queries():
        for name, selector in re.findall(rf"(?<![\w:])({NAME})(?:{{([^}}]*)}})?", query):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert labels <= families[name].labels | TARGET_LABELS, query


def test_groups_are_of_labels_that_some_metric_of_the_query_has() -> None:
    families = {name: each for each in all_families().values() for name in each.series}
    for query in queries():
        names = re.findall(rf"(?<![\w:])({NAME})(?!\w)", query)
        known = set(TARGET_LABELS).union(*(families[name].labels for name in names))
        groups = re.findall(r"\b(?:by|on) \(([^)]*)\)", query)
        used = {label.strip() for group in groups for label in group.split(",")}
        assert used <= known, query


def test_rates_are_of_counters_and_counters_are_seen_as_rates() -> None:
    families = {name: each for each in all_families().values() for name in each.series}
    for query in queries():
        rated = set(re.findall(rf"\b(?:rate|increase)\(({NAME})", query))
        named = set(re.findall(rf"(?<![\w:])({NAME})(?!\w)", query))
        counted = {name for name in named if families[name].kind in ("counter", "histogram")}
        assert rated == counted, query


def test_what_is_recorded_is_used_and_what_is_used_is_recorded() -> None:
    used = set(re.findall(r"\bmodel:terrace_\w+:\w+", " ".join(queries())))
    assert used == RECORDED
