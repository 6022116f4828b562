"""What becomes of the claims of disk tiers: they grow, and none is left without an owner."""

from __future__ import annotations

from typing import Any

import pytest

from support.controller_objects import model
from terrace.controller.diff import Removal, Write, diff
from terrace.controller.kinds import CLAIM, STATEFULSET, Manifest
from terrace.controller.model_volumes import claim_template
from terrace.controller.replica_claims import claim_steps, claim_template_fields, claim_templates
from terrace.planner.plan import KvVolume

MIB, GIB = 1 << 20, 1 << 30
MODEL = {**model(), "metadata": {"name": "demo", "namespace": "default", "uid": "model-uid"}}
SET = {"kind": "StatefulSet", "name": "demo-cpu", "uid": "set-uid", "controller": True}
MINE = {"apiVersion": "terrace.dev/v1alpha1", "kind": "InferenceModel", "name": "demo"}
VOLUME = KvVolume(bytes=2 * GIB)
OWN = claim_template("models", "20Gi", None)


def claim(name: str = "kv-demo-cpu-0", size: str = "1Gi", **metadata: Any) -> Manifest:
    return {
        "metadata": {"name": name, "namespace": "default", "uid": "u", **metadata},
        "spec": {"resources": {"requests": {"storage": size}}},
    }


def applied(live: Manifest, volume: KvVolume | None = VOLUME) -> list[Manifest]:
    steps = claim_steps(MODEL, [live], "demo-cpu", claim_templates(volume, OWN))
    assert all((step.kind, step.uid) == (CLAIM, "u") for step in steps)
    return [step.manifest for step in steps]


def test_a_claim_grows_and_nothing_else_of_it_is_touched() -> None:
    (grown,) = applied(claim(ownerReferences=[SET]))
    assert grown["spec"] == {"resources": {"requests": {"storage": "2048Mi"}}}
    assert grown["metadata"] == {"name": "kv-demo-cpu-0", "namespace": "default"}


def test_the_claim_of_a_replicas_own_files_grows_as_well() -> None:
    (grown,) = applied(claim("models-demo-cpu-1", "5Gi", ownerReferences=[SET]))
    assert grown["spec"] == {"resources": {"requests": {"storage": "20Gi"}}}


@pytest.mark.parametrize("size", ["2Gi", "3Gi"])
def test_a_claim_that_is_large_enough_is_left_alone(size: str) -> None:
    assert applied(claim(size=size, ownerReferences=[SET])) == []


def test_a_claim_without_a_set_goes_with_the_model_from_now_on() -> None:
    for volume in (None, KvVolume(bytes=GIB, claim="mine"), KvVolume(bytes=GIB, is_ephemeral=True)):
        (adopted,) = applied(claim(), volume)
        assert adopted["metadata"]["ownerReferences"] == [{**MINE, "uid": "model-uid"}]
        assert adopted["spec"]["resources"]["requests"]["storage"] == "1Gi"
    (of_another_flavor,) = applied(claim("kv-demo-gpu-0"))
    assert of_another_flavor["metadata"]["ownerReferences"]


def test_a_claim_that_the_next_set_will_adopt_is_left_to_it() -> None:
    assert applied(claim(size="2Gi")) == []


def test_a_claim_that_was_adopted_once_keeps_its_owner_when_it_grows() -> None:
    owner = {**MINE, "uid": "model-uid"}
    (grown,) = applied(claim(ownerReferences=[SET, owner]))
    assert grown["metadata"]["ownerReferences"] == [owner]


def test_a_claim_on_its_way_out_is_left_alone() -> None:
    assert applied(claim(deletionTimestamp="now"), None) == []


# The set ----------------------------------------------------------------------------------------


def stateful_set(volume: KvVolume | None, **changes: Any) -> Manifest:
    spec = {"replicas": 1, **claim_template_fields(claim_templates(volume, None)), **changes}
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "demo-cpu", "namespace": "default"},
        "spec": spec,
    }


def steps(live: Manifest, wanted: Manifest) -> list[Write | Removal]:
    stored = {**live, "metadata": {**live["metadata"], "uid": "set-uid"}}
    return diff([(STATEFULSET, wanted)], {(STATEFULSET, "demo-cpu"): stored})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (VOLUME, KvVolume(bytes=3 * GIB)),
        (VOLUME, KvVolume(bytes=GIB)),
        (VOLUME, KvVolume(bytes=2 * GIB, storage_class="fast")),
        (KvVolume(bytes=2 * GIB, storage_class="fast"), VOLUME),
        (VOLUME, None),
        (None, VOLUME),
        (VOLUME, KvVolume(bytes=2 * GIB, claim="mine")),
    ],
)
def test_another_claim_template_takes_the_set_away_and_leaves_its_pods(
    before: KvVolume | None, after: KvVolume | None
) -> None:
    (step,) = steps(stateful_set(before), stateful_set(after))
    assert isinstance(step, Removal)
    assert step.is_orphaning


def test_the_same_claim_template_as_the_server_keeps_it_is_no_change() -> None:
    live = stateful_set(VOLUME)
    template = live["spec"]["volumeClaimTemplates"][0]
    template["status"] = {"phase": "Pending"}
    template["spec"]["resources"]["requests"]["storage"] = "2Gi"
    (step,) = steps(live, stateful_set(VOLUME, replicas=3))
    assert isinstance(step, Write)
