"""A cluster as ``terrace plan`` sees it: its nodes, what is taken, its operator, its pool."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from support.cli_cluster import FakeReader, model, nodes, parts, pool, replica, running
from support.controller_objects import facts, node
from terrace.api.model import ModelSpec
from terrace.cli.errors import InputError
from terrace.cli.profiles import chosen_row, plan_profiles
from terrace.cli.target import cluster_target, reading_of
from terrace.controller.kinds import CONFIGMAP, NODE, POD, POOL
from terrace.planner.placement import Placement
from terrace.planner.rooms import NoPlacement

if TYPE_CHECKING:
    from terrace.cli.profiles import Target
    from terrace.controller.kinds import Kind, Manifest
    from terrace.planner.plan import OffloadPlan

IMAGE = "registry/runtime:1.0"
SPEC = ModelSpec.model_validate({"poolRef": {"name": "default"}, "source": {"uri": "demo://chat"}})
MIB = 1 << 20


def planned(target: Target) -> Placement | NoPlacement:
    inputs = target.inputs(facts(), SPEC)
    return chosen_row(plan_profiles(inputs, target)).result


def plan_in(*objects: tuple[Kind, Manifest]) -> OffloadPlan:
    result = planned(cluster_target(FakeReader(objects), "default", None))
    assert isinstance(result, Placement), result
    return result.plan


def gpu_node(**labels: str) -> Manifest:
    found = node("gpu-a", labels={"nvidia.com/gpu.memory": "24576", **labels})
    found["status"]["allocatable"]["nvidia.com/gpu"] = "1"
    return found


def gpu_pool() -> tuple[Kind, Manifest]:
    kind, found = pool()
    found["spec"]["flavors"] = [{"name": "gpu", "accelerator": "nvidia"}]
    return kind, found


def operator(**rows: Any) -> list[tuple[Kind, Manifest]]:
    """The operator's pod, and its rows of the accelerator table."""
    labels = parts()[0][1]["metadata"]["labels"]
    metadata = {"name": "terrace-operator-accelerators", "namespace": "terrace-system"}
    config = {"metadata": metadata | {"labels": labels}}
    text = {"data": {"accelerators.yaml": json.dumps(rows)}} if rows else {}
    return [*parts(TERRACE_RUNTIME_IMAGE=IMAGE), (CONFIGMAP, config | text)]


def measured(image: str) -> tuple[Kind, Manifest]:
    took = {
        "image": image,
        "deviceClass": "cpu",
        "plannedHostBytes": 100 * MIB,
        "hostBytes": 148 * MIB,
    }
    return model({}, **running(measured=took))


def test_replicas_that_run_there_are_counted() -> None:
    small = node(memory="400Mi")
    free, taken = plan_in(pool(), *nodes(small)), plan_in(pool(), *nodes(small), replica())
    assert taken.memory_limit_bytes < free.memory_limit_bytes <= 400 * MIB


def test_what_replicas_of_the_file_took_is_added() -> None:
    objects = [pool(), *nodes(), *operator()]
    plain = plan_in(*objects)
    corrected = plan_in(*objects, measured(IMAGE))
    assert corrected.memory_request_bytes - plain.memory_request_bytes == 48 * MIB
    # Another build takes other amounts.
    assert plan_in(*objects, measured("registry/runtime:0.9")) == plain


def test_the_operators_own_rows_count() -> None:
    objects = [*nodes(gpu_node()), gpu_pool()]
    mine = {"name": "nvidia", "extends": "nvidia", "margin": "2Gi"}
    own = plan_in(*objects, *operator(accelerators=[mine]))
    assert own.device is not None
    assert own.device.margin_bytes == 2 << 30


def test_a_device_without_an_image_is_refused_as_the_operator_refuses_it() -> None:
    objects = [*nodes(gpu_node()), gpu_pool(), *parts(TERRACE_RUNTIME_IMAGE="r@sha256:abc")]
    result = planned(cluster_target(FakeReader(objects), "default", None))
    assert isinstance(result, NoPlacement)
    assert "there is no image for CUDA" in result.message


def test_without_a_pool_every_kind_of_device_is_a_flavor() -> None:
    target = cluster_target(FakeReader([*nodes(gpu_node(), node())]), None, None)
    assert [flavor.name for flavor in target.pool.flavors] == ["nvidia", "cpu"]
    result = planned(target)
    assert isinstance(result, Placement)
    assert result.plan.device is not None


def test_what_may_not_be_read_is_a_note() -> None:
    reader = FakeReader([pool(), *nodes()])
    reader.forbidden_everywhere = {POD, CONFIGMAP}
    notes = cluster_target(reader, "default", None).notes
    assert any("pods in other namespaces" in note for note in notes)
    assert any("the accelerators that the operator was given" in note for note in notes)


def test_a_cluster_of_which_no_node_is_seen_cannot_be_planned() -> None:
    reader = FakeReader([pool(), *nodes()])
    reader.forbidden = {NODE}
    with pytest.raises(InputError, match="no node of https://fake:6443 can be seen: nodes of"):
        cluster_target(reader, "default", None)


@pytest.mark.parametrize("name", ["none", "default/none", "a/b/c", "/x"])
def test_a_pool_that_is_not_there_is_bad_input(name: str) -> None:
    with pytest.raises(InputError, match=r"--pool|kubectl get ipool"):
        cluster_target(FakeReader([pool(), *nodes()]), name, None)


def test_a_pool_that_does_not_parse_is_bad_input() -> None:
    kind, found = pool()
    found["spec"]["flavors"] = []
    with pytest.raises(InputError, match=r"--pool default/default: spec\.flavors"):
        cluster_target(FakeReader([(kind, found), *nodes()]), "default", None)


def test_a_pool_tells_where_its_models_come_from() -> None:
    kind, found = pool()
    assert kind == POOL
    found["spec"]["sources"] = {"huggingFaceEndpoint": "https://mirror.example/hf"}
    found["spec"]["access"] = {"allowedNetworks": ["10.0.0.0/8"]}
    target = cluster_target(FakeReader([(kind, found), *nodes()]), "default", None)
    reading = reading_of(target.pool, ("192.168.0.0/16",), wants_digest=False)
    assert reading.networks == ("10.0.0.0/8", "192.168.0.0/16")
    assert reading.environment == {"HF_ENDPOINT": "https://mirror.example/hf"}
