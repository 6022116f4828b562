"""Disk tiers on a real control plane: claims, their growth, and a set that is made anew."""

# ruff: noqa: F811 -- pytest fixtures are imported under the names that tests ask for

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cluster.controller_api import ApiError, eventually
from cluster.controller_fixtures import api, kubelet, operators, world  # noqa: F401 -- fixtures
from cluster.controller_kubelet import running
from cluster.controller_looks import settle
from support.controller_objects import condition
from terrace.controller.kinds import CLAIM, STATEFULSET, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.controller_api import Api, Manifest
    from cluster.controller_world import World

STORAGE_CLASS = Kind("storage.k8s.io/v1", "StorageClass", "storageclasses", namespaced=False)


@pytest.fixture(scope="module", autouse=True)
def classes(api: Api) -> Iterator[None]:
    """``elastic`` may grow, ``rigid`` may not; the control plane is other tests' too."""
    names = ("elastic", "rigid")
    for name in names:
        storage_class = {
            "apiVersion": STORAGE_CLASS.api_version,
            "kind": STORAGE_CLASS.kind,
            "metadata": {"name": name},
            "provisioner": "terrace.dev/local",
            "volumeBindingMode": "WaitForFirstConsumer",
            "allowVolumeExpansion": name == "elastic",
        }
        try:
            api.create(STORAGE_CLASS, storage_class)
        except ApiError as error:
            if error.status != 409:
                raise
    yield
    for name in names:
        api.delete(STORAGE_CLASS, "", name)


def offload(max_disk: str, storage_class: str = "elastic") -> Manifest:
    return {"maxDisk": max_disk, "disk": {"storageClassName": storage_class}}


def kv_claims(world: World) -> dict[str, Manifest]:
    claims = world.api.items(CLAIM, world.namespace)
    return {
        claim["metadata"]["name"]: claim
        for claim in claims
        if claim["metadata"]["name"].startswith("kv-")
    }


def sizes(world: World) -> dict[str, str]:
    return {
        name: claim["spec"]["resources"]["requests"]["storage"]
        for name, claim in kv_claims(world).items()
    }


def stateful_set(world: World) -> Manifest:
    return world.api.get(STATEFULSET, world.namespace, "demo-cpu") or {}


def kept_owners(world: World) -> dict[str, list[str]]:
    return {
        name: [owner["kind"] for owner in claim["metadata"].get("ownerReferences", ())]
        for name, claim in kv_claims(world).items()
    }


def test_each_replica_has_a_claim_that_outlives_scaling_and_goes_with_the_set(
    world: World,
) -> None:
    operator = world.operators.start()
    world.add_pool()
    world.add_model(replicas=2, offload=offload("1Gi"))
    world.wait_ready()
    assert sizes(world) == {"kv-demo-cpu-0": "1344Mi", "kv-demo-cpu-1": "1344Mi"}
    before = {n: c["metadata"]["uid"] for n, c in kv_claims(world).items()}
    world.patch(replicas=0)
    eventually(lambda: not world.pods(), "no replica")
    world.patch(replicas=2)
    world.wait_ready()
    assert {n: c["metadata"]["uid"] for n, c in kv_claims(world).items()} == before
    owners = {name: ["StatefulSet"] for name in before}
    eventually(lambda: kept_owners(world) == owners, "the set owns the claims")
    settle(world, operator)
    assert kept_owners(world) == owners


def test_a_larger_disk_grows_the_claims_and_rolls_out_in_a_set_made_anew(world: World) -> None:
    operator = world.operators.start()
    world.add_pool()
    world.add_model(replicas=2, offload=offload("1Gi"))
    world.wait_ready()
    old_set, old_pods = stateful_set(world)["metadata"]["uid"], world.uids()
    claims = {n: c["metadata"]["uid"] for n, c in kv_claims(world).items()}
    world.patch(offload=offload("2Gi"))
    world.wait_ready()
    eventually(lambda: old_pods.isdisjoint(world.uids()), "all replaced")
    world.wait_ready()
    assert set(sizes(world).values()) == {"2432Mi"}
    assert {n: c["metadata"]["uid"] for n, c in kv_claims(world).items()} == claims
    new = stateful_set(world)
    assert new["metadata"]["uid"] != old_set
    (template,) = new["spec"]["volumeClaimTemplates"]
    assert template["spec"]["resources"]["requests"]["storage"] == "2432Mi"
    owners = {name: ["StatefulSet"] for name in claims}
    eventually(lambda: kept_owners(world) == owners, "the new set owns the claims")
    settle(world, operator)
    assert kept_owners(world) == owners


def test_a_class_that_cannot_grow_is_told_and_nothing_is_touched(world: World) -> None:
    world.operators.start()
    world.add_pool()
    world.add_model(offload=offload("1Gi", "rigid"))
    world.wait_ready()
    old_set, pods = stateful_set(world)["metadata"]["uid"], world.uids()
    world.patch(offload=offload("2Gi", "rigid"))
    stalled = world.wait("Stalled", "True", "Refused")
    assert "kv-demo-cpu-0" in stalled["message"]
    assert "must support resize" in stalled["message"]
    assert "set offload.maxDisk or the pool's modelCache.size back" in stalled["message"]
    assert (stateful_set(world)["metadata"]["uid"], world.uids()) == (old_set, pods)
    assert condition(world.model(), "Available")["status"] == "True"
    world.patch(offload=offload("1Gi", "rigid"))
    world.wait_ready()
    assert (stateful_set(world)["metadata"]["uid"], world.uids()) == (old_set, pods)


def test_claims_that_no_set_has_any_more_go_with_the_model(world: World) -> None:
    world.operators.start()
    world.add_pool()
    world.add_model(offload=offload("1Gi"))
    world.wait_ready()
    before = world.uids()
    world.patch(offload={"maxDisk": 0, "disk": None})
    eventually(lambda: before.isdisjoint(world.uids()) and world.uids(), "replaced")
    world.wait_ready()
    adopted = {"kv-demo-cpu-0": ["InferenceModel"]}
    eventually(lambda: kept_owners(world) == adopted, "the model owns the claim")


def test_an_operator_killed_while_the_set_is_away_is_healed_and_no_pod_restarts(
    world: World,
) -> None:
    operator = world.operators.start()
    world.add_pool()
    world.add_model(replicas=2, offload=offload("1Gi"))
    world.wait_ready()
    settle(world, operator)
    pods, digest = world.uids(), world.model()["status"]["plan"]["digest"]
    operator.kill()
    # What the kill leaves: a set that was deleted without its pods, and not made again.
    world.api.delete(STATEFULSET, world.namespace, "demo-cpu", propagationPolicy="Orphan")
    eventually(lambda: not stateful_set(world), "the set is gone")
    assert world.uids() == pods
    world.kubelet.add_node("node-larger", cpu="128", memory="128Gi")  # News change no plan.
    operator = world.operators.start("operator-1")
    eventually(lambda: stateful_set(world), "the set is back")

    def is_adopted() -> bool:
        uid = stateful_set(world)["metadata"]["uid"]
        owners = [pod["metadata"].get("ownerReferences", [{}])[0] for pod in world.pods()]
        return [owner.get("uid") for owner in owners] == [uid, uid]

    eventually(is_adopted, "the pods are adopted")
    settle(world, operator)
    world.wait_ready()
    assert world.uids() == pods
    assert world.model()["status"]["plan"]["digest"] == digest
    eventually(
        lambda: set(map(tuple, kept_owners(world).values())) == {("StatefulSet",)},
        "the new set owns the claims",
    )


def test_an_operator_killed_as_the_set_goes_is_followed_by_one_that_finishes(world: World) -> None:
    operator = world.operators.start()
    world.add_pool()
    world.add_model(replicas=2, offload=offload("1Gi"))
    world.wait_ready()
    settle(world, operator)
    pods, old_set = world.uids(), stateful_set(world)["metadata"]["uid"]

    def only_old_ones_are_ready(pod: Manifest) -> Manifest:
        return running(pod, ready=pod["metadata"]["uid"] in pods)

    world.kubelet.serve = only_old_ones_are_ready  # So that one stays, however late the kill is.
    world.patch(offload=offload("2Gi"))

    def is_going() -> bool:
        found: Any = stateful_set(world).get("metadata", {})
        return "deletionTimestamp" in found or found.get("uid") != old_set

    eventually(is_going, "the old set goes", step_s=0.002)
    operator.kill()
    assert world.uids() & pods, "pods went with their set"
    world.kubelet.serve = lambda _pod: None
    world.operators.start("operator-1")
    world.wait_ready()
    eventually(lambda: pods.isdisjoint(world.uids()), "all replaced")
    world.wait_ready()
    assert set(sizes(world).values()) == {"2432Mi"}
