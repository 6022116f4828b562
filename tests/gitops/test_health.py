"""What kstatus, Flux and Argo CD say of each state: their own evaluators, real recorded objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gitops.evaluators import (
    EVALUATORS,
    Verdict,
    argo_scripts,
    flux_checks,
    judge,
    question,
)
from support.controller_objects import model

if TYPE_CHECKING:
    from cluster.controller_api import Manifest

WAITS = ("InProgress", "InProgress", "Progressing")
WORKS = ("Current", "Current", "Healthy")
STUCK = ("Failed", "Failed", "Degraded")
BROKEN = ("InProgress", "InProgress", "Degraded")
"""It may mend itself, so nothing has failed for good; somebody should look nevertheless."""
OFF = ("Current", "Current", "Suspended")
GOES = ("Terminating", "InProgress", "Progressing")
TABLE = {
    # state: kstatus (Helm 4, and Flux by itself), Flux's healthCheckExprs, Argo CD
    "just created": WAITS,
    "downloading": WAITS,
    "starting": WAITS,
    "ready": WORKS,
    "changed, not seen yet": WAITS,
    "made anew": WAITS,
    "rolling out": WAITS,
    "scaling to 0": WAITS,
    "scaled to 0": OFF,
    "scaled to 0 from the start": OFF,
    "crashing": BROKEN,
    "one of two crashes": BROKEN,
    "image unavailable": BROKEN,
    "no node fits": WAITS,
    "source fails for now": WAITS,
    "pool not found": WAITS,
    "pool gone": BROKEN,
    "bad file": STUCK,
    "plan given up": STUCK,
    "name taken": STUCK,
    "foreign service": STUCK,
    "invalid spec": STUCK,
    "being deleted": GOES,
    "pool: just created": WAITS,
    "pool: made anew": WAITS,
    "pool: ready": WORKS,
    "pool: no node": WAITS,
    "pool: foreign claim": STUCK,
    "pool: invalid spec": STUCK,
    "pool: being deleted": GOES,
}


@pytest.fixture(scope="session")
def verdicts(recorded: dict[str, Manifest]) -> dict[tuple[str, str], Verdict]:
    """(State, evaluator) -> what it says."""
    asked = [(state, name) for state in recorded for name in EVALUATORS]
    said = judge([question(name, recorded[state]) for state, name in asked])
    return dict(zip(asked, said, strict=True))


@pytest.mark.parametrize("state", TABLE)
def test_every_evaluator_is_right_about(
    state: str, verdicts: dict[tuple[str, str], Verdict]
) -> None:
    assert tuple(verdicts[state, name].word for name in EVALUATORS) == TABLE[state]


def test_every_recorded_state_is_in_the_table(recorded: dict[str, Manifest]) -> None:
    assert set(recorded) == set(TABLE)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("bad file", "no GGUF magic; mend the source"),
        ("pool not found", "InferencePool 'nowhere' is not in this namespace: create it"),
        ("name taken", "'ready' is served by states/ready"),
        ("crashing", "ended with exit code 13: llama.cpp: cannot load the model"),
        ("no node fits", "TiB"),
        ("downloading", "the fetch Job reads the model file"),
        ("changed, not seen yet", "the operator has not looked at it yet"),
    ],
)
def test_argo_cd_shows_why(
    state: str, words: str, verdicts: dict[tuple[str, str], Verdict]
) -> None:
    assert words in verdicts[state, "argo"].message


def test_kstatus_shows_why_something_failed(
    recorded: dict[str, Manifest], verdicts: dict[tuple[str, str], Verdict]
) -> None:
    failed = [state for state in recorded if TABLE[state] == STUCK]
    assert failed
    for state in failed:
        assert verdicts[state, "kstatus"].message in str(recorded[state]["status"]["conditions"])
        assert len(verdicts[state, "kstatus"].message) > 10, state


def test_the_rules_are_shipped_for_both_kinds() -> None:
    assert set(argo_scripts()) == {"terrace.dev_InferenceModel", "terrace.dev_InferencePool"}
    assert {check["kind"] for check in flux_checks()} == {"InferenceModel", "InferencePool"}


def test_argo_cd_takes_an_object_without_status_for_unfinished() -> None:
    bare = model()  # As an operator's CRD without a default would have it.
    (said,) = judge([question("argo", {**bare, "metadata": {**bare["metadata"], "generation": 1}})])
    assert said.word == "Progressing"


@pytest.mark.parametrize("kind", ["Ready", "Stalled", "Reconciling", "Placed"])
@pytest.mark.parametrize("status", ["True", "False", "Unknown"])
def test_no_rule_breaks_on_a_condition_without_reason_and_message(kind: str, status: str) -> None:
    bare = model()
    odd = {
        **bare,
        "metadata": {**bare["metadata"], "generation": 1},
        "status": {"observedGeneration": 1, "conditions": [{"type": kind, "status": status}]},
    }
    words = [verdict.word for verdict in judge([question(name, odd) for name in EVALUATORS])]
    wanted = {("Ready", "True"): WORKS, ("Stalled", "True"): STUCK}.get((kind, status))
    assert words == list(wanted) if wanted else words[1:] == ["InProgress", "Progressing"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("return {status = 'Fine'}", "no health"),
        ("return string.upper('x')", "non-table object"),
        ("local text = obj.metadata.name", "not a table"),
        ("while true do end", "deadline"),
    ],
)
def test_the_evaluator_refuses_what_argo_cd_refuses(script: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        judge([{"evaluator": "argo", "object": model(), "script": script}])
