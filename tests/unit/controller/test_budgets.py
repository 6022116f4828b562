"""When a model has a disruption budget, what it selects, and when one goes."""

from __future__ import annotations

import pytest

from support.controller_objects import MODEL_PATH, facts, model, offload_plan, pool
from terrace.api import names
from terrace.api.model import ModelSpec
from terrace.api.pool import PoolSpec
from terrace.controller.diff import leftovers
from terrace.controller.facts import KnownModel
from terrace.controller.files import Extras
from terrace.controller.heads import model_labels
from terrace.controller.kinds import BUDGET, CONFIGMAP, STATEFULSET, Kind, Manifest
from terrace.controller.manifests import Subject, model_children
from terrace.controller.parse import parse_spec
from terrace.controller.replica_config import runtime_config

PLAN = offload_plan(inputs="0" * 64)


def children(replicas: int | None) -> list[tuple[Kind, Manifest]]:
    wanted: Manifest = {} if replicas is None else {"replicas": replicas}
    found = model(**wanted)
    found["metadata"]["uid"] = "model-uid"
    about = Subject(
        found,
        parse_spec(ModelSpec, found),
        "default",
        parse_spec(PoolSpec, pool()),
        "terrace/runtime:0.1.0",
        "trust-key",
    )
    config = runtime_config(about, KnownModel(facts(), MODEL_PATH), Extras(), PLAN)
    return model_children(about, about.pool.flavors[0], PLAN, config)


def budgets(replicas: int | None) -> list[Manifest]:
    return [child for kind, child in children(replicas) if kind == BUDGET]


@pytest.mark.parametrize(("replicas", "num"), [(None, 0), (0, 0), (1, 0), (2, 1), (8, 1)])
def test_only_more_than_one_replica_is_protected(replicas: int | None, num: int) -> None:
    assert len(budgets(replicas)) == num


def test_a_budget_selects_replicas_and_no_other_pod_of_the_model() -> None:
    (budget,) = budgets(2)
    (replica,) = [
        child["spec"]["template"]["metadata"]["labels"]
        for kind, child in children(2)
        if kind == STATEFULSET
    ]
    selector = budget["spec"]["selector"]["matchLabels"].items()
    assert selector <= replica.items()
    assert not selector <= model_labels("demo", "default", "fetch").items()
    assert not selector <= (replica | {names.LABEL_MODEL: "other"}).items()


def test_a_budget_keeps_no_replica_that_is_not_ready_on_a_drained_node() -> None:
    (budget,) = budgets(2)
    assert budget["spec"]["maxUnavailable"] == 1
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def left_over(replicas: int, budget: Manifest) -> list[Kind]:
    live = {(BUDGET, "demo"): budget}
    return [step.kind for step in leftovers(children(replicas), live, [])]


def test_a_budget_goes_with_the_second_replica() -> None:
    (budget,) = budgets(2)
    assert left_over(2, budget) == []
    assert left_over(1, budget) == [BUDGET]


def test_a_budget_on_its_way_out_is_not_deleted_again() -> None:
    (budget,) = budgets(2)
    budget["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert left_over(1, budget) == []


def test_where_nothing_is_placed_what_runs_stays_protected() -> None:
    (budget,) = budgets(2)
    unplaced = [each for each in children(1) if each[0] not in (CONFIGMAP, STATEFULSET)]
    assert leftovers(unplaced, {(BUDGET, "demo"): budget}, []) == []
