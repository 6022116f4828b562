"""Every alert fires when it should, says what it should, and is quiet otherwise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from observability.tools import ROOT, RULES, alerts, promtool
from terrace.api.conditions import Reason
from terrace_runtime.contract import FetchFailure

pytestmark = pytest.mark.timeout(400)

CASES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("alert_cases.yaml").read_text())
PAGE = ROOT / "docs/observability.md"
TROUBLESHOOTING = ROOT / "docs/troubleshooting.md"


def promtool_test(series: dict[str, str], at: str, alert: str, fired: list[Any]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": fired}],
    }


def run(tmp_path: Path, tests: dict[str, list[dict[str, Any]]]) -> None:
    """Each alert's tests with the rules of its file alone: promtool evaluates them all."""
    files = []
    for rule_file in RULES:
        file = tmp_path / rule_file.name
        own = [test for alert in alerts(rule_file) for test in tests[alert]]
        content = {"rule_files": [str(rule_file)], "tests": own}
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        files.append(str(file))
    promtool("test", "rules", *files)


def test_promtool_finds_nothing_wrong_with_the_rules() -> None:
    promtool("check", "rules", *map(str, RULES))


def test_every_alert_has_cases_and_every_case_an_alert() -> None:
    assert set(CASES) == set(alerts()) != set()
    assert all(case["quiet"] for case in CASES.values())


def test_each_fires_with_these_words(tmp_path: Path) -> None:
    tests = {}
    for alert, case in CASES.items():
        fires = case["fires"]
        fired = {"exp_labels": fires["labels"], "exp_annotations": fires["says"]}
        tests[alert] = [promtool_test(fires["series"], fires["at"], alert, [fired])]
    run(tmp_path, tests)


def test_none_fires_when_it_should_not(tmp_path: Path) -> None:
    run(
        tmp_path,
        {
            alert: [
                promtool_test(series, case["fires"]["at"], alert, [])
                for series in case["quiet"].values()
            ]
            for alert, case in CASES.items()
        },
    )


@pytest.mark.parametrize("alert", CASES)
def test_it_says_what_to_type_next_and_where_to_read_on(alert: str) -> None:
    says = CASES[alert]["fires"]["says"]
    assert set(says) == {"summary", "description", "runbook"}
    assert re.search(r" Next: (kubectl|terrace) \S", says["description"])
    assert "error expanding" not in str(says)
    file, _, anchor = says["runbook"].partition("#")
    headings = {
        line.lstrip("#").strip().lower()
        for line in (ROOT / file).read_text().splitlines()
        if line.startswith("#")
    }
    assert anchor in headings, f"{file} has no heading {anchor}"


def test_runbooks_that_follow_a_reason_exist_for_every_reason() -> None:
    reasons = {*Reason, *get_args(FetchFailure.model_fields["reason"].annotation)}
    lines = TROUBLESHOOTING.read_text().splitlines()
    headings = {line.lstrip("# ").strip() for line in lines if line.startswith("#")}
    assert set(map(str, reasons)) <= headings
