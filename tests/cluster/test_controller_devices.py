"""Nodes of every vendor on a real control plane: the right resource, or the right condition."""

# ruff: noqa: F811 -- pytest fixtures are imported under the names that tests ask for

from __future__ import annotations

import time
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pytest

from cluster.controller_api import Manifest, eventually
from cluster.controller_fixtures import api, kubelet, operator, operators, world  # noqa: F401 -- fixtures
from cluster.controller_looks import settle
from support.controller_objects import condition, fetched
from terrace.api import names
from terrace.controller.kinds import MODEL, POD, POOL, STATEFULSET, is_deleting, labels_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.controller_kubelet import Kubelet
    from cluster.controller_operator import Operator
    from cluster.controller_world import World

GPU = "nvidia.com/gpu"
A100 = {
    "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
    "nvidia.com/gpu.memory": "81920",
    "nvidia.com/gpu.replicas": "1",
}
IMAGE = "terrace/runtime:0.1.0"
# accelerator -> labels and resources as its plugin gives them, fields of the flavor, image's suffix
RUN: dict[str, tuple[dict[str, str], str, dict[str, Any], str]] = {
    "nvidia": (A100, GPU, {}, "-cuda"),
    "nvidia-mig": (
        {"nvidia.com/mig-1g.10gb.memory": "9728"},
        "nvidia.com/mig-1g.10gb",
        {"accelerator": "nvidia", "resourceName": "nvidia.com/mig-1g.10gb"},
        "-cuda",
    ),
    "nvidia-shared": (
        {**A100, "nvidia.com/gpu.product": "Tesla-T4-SHARED", "nvidia.com/gpu.replicas": "2"},
        GPU,
        {"accelerator": "nvidia", "sharing": "Shared"},
        "-cuda",
    ),
    "amd": (
        {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM", "amd.com/gpu.vram": "191G"},
        "amd.com/gpu",
        {},
        "-rocm",
    ),
    "amd-vulkan": ({"amd.com/gpu.vram": "16G"}, "amd.com/gpu", {}, "-vulkan"),
    "intel-gpu": ({"gpu.intel.com/product": "Flex_170"}, "gpu.intel.com/xe", {}, "-sycl"),
    "intel-gpu-vulkan": (
        {"gpu.intel.com/product": "Max_1100"},
        "gpu.intel.com/i915",
        {},
        "-vulkan",
    ),
    "ascend": (
        {"node.kubernetes.io/npu.chip.name": "910B3"},
        "huawei.com/Ascend910",
        {},
        "-cann",
    ),
    "ascend-310p": ({}, "huawei.com/Ascend310P", {}, "-cann-310p"),
    "intel-npu": ({}, "npu.intel.com/npu", {"memoryPerDevice": "8Gi"}, "-openvino"),
    "moore-threads": (
        {"mthreads.com/gpu": "enable"},
        "mthreads.com/gpu",
        {"memoryPerDevice": "48Gi"},
        "-musa",
    ),
}
# What llama.cpp cannot use, or what nobody tells the memory of.
REFUSED: dict[str, tuple[dict[str, str], str, str]] = {
    "cambricon": ({"Model": "MLU370"}, "cambricon.com/mlu", "UnsupportedAccelerator"),
    "enflame": ({}, "enflame.com/gcu", "UnsupportedAccelerator"),
    "hygon": ({"hygon.com/dcu.vram": "64G"}, "hygon.com/dcu", "UnsupportedAccelerator"),
    "kunlunxin": ({}, "kunlunxin.com/xpu", "UnsupportedAccelerator"),
    "metax": (
        {"metax-tech.com/gpu.memory": "64GB"},
        "metax-tech.com/gpu",
        "UnsupportedAccelerator",
    ),
    "iluvatar": ({"iluvatar.ai/gpu": "present"}, "iluvatar.com/gpu", "UnsupportedAccelerator"),
    "biren": ({}, "birentech.com/gpu", "UnsupportedAccelerator"),
    "qualcomm": ({"qualcomm.com/qaic": "true"}, "qualcomm.com/qaic", "UnsupportedAccelerator"),
    "gaudi": ({}, "habana.ai/gaudi", "UnsupportedAccelerator"),
    "tpu": ({}, "google.com/tpu", "UnsupportedAccelerator"),
    "neuron": ({}, "aws.amazon.com/neuron", "UnsupportedAccelerator"),
    "fpga": ({}, "xilinx.com/fpga-u250", "UnsupportedAccelerator"),
    "metal": ({}, "", "UnsupportedAccelerator"),
    "unheard-of": ({}, "", "UnsupportedAccelerator"),
    "intel-npu": ({}, "npu.intel.com/accel", "UnknownDeviceMemory"),
}


@pytest.fixture
def machines(kubelet: Kubelet) -> Any:
    """Adds nodes that are gone after the test."""
    added: list[str] = []

    def add(name: str, labels: dict[str, str], devices: dict[str, int]) -> None:
        added.append(name)
        labels = labels | {"kind": name, "kubernetes.io/hostname": name}
        kubelet.add_node(name, cpu="64", memory="256Gi", labels=labels, devices=devices)

    yield add
    for name in added:
        kubelet.remove_node(name)


def one_pool(world: World, kind: str, *flavors: dict[str, Any], name: str = "") -> None:
    """A pool called ``name`` whose flavors take the nodes of that kind."""
    complete = [
        {"name": "gpu", "nodeSelector": {"kind": kind}, "host": {"cpu": "100m"}} | flavor
        for flavor in flavors
    ]
    world.add_pool(name or kind, flavors=complete)


def runtime_of(world: World, model: str) -> Manifest:
    pods = world.pods(model=model)
    assert len(pods) == 1, pods
    return pods[0]


def limits_of(pod: Manifest) -> dict[str, str]:
    limits: dict[str, str] = pod["spec"]["containers"][0]["resources"]["limits"]
    return {name: count for name, count in limits.items() if "/" in name}


def test_a_model_runs_on_every_vendor_that_llama_cpp_knows(
    world: World, operator: Operator, kubelet: Kubelet, machines: Any
) -> None:
    kubelet.outcome = lambda _model: fetched(weight_types=("F16", "F32"))
    for kind, (labels, resource, fields, _) in RUN.items():
        machines(kind, labels, {resource: 2})
        one_pool(world, kind, {"accelerator": kind} | fields)
        world.add_model(kind, poolRef={"name": kind})
    for kind, (_, resource, _, suffix) in RUN.items():
        world.wait_ready(kind)
        pod = runtime_of(world, kind)
        assert limits_of(pod) == {resource: "1"}, kind
        assert pod["spec"]["nodeName"] == kind
        assert pod["spec"]["containers"][0]["image"] == f"{IMAGE}{suffix}"
        assert kind in world.model(kind)["status"]["plan"]["device"]["accelerator"] or "-" in kind
    npu = runtime_of(world, "intel-npu")["spec"]["containers"][0]
    assert {"name": "GGML_OPENVINO_DEVICE", "value": "NPU"} in npu["env"]
    assert world.model("intel-npu")["status"]["plan"]["parallel"] == 1
    groups = runtime_of(world, "amd")["spec"]["securityContext"]["supplementalGroups"]
    assert 44 in groups  # video
    for job in world.pods("fetch"):
        assert not limits_of(job)
        assert job["spec"]["containers"][0]["image"] == IMAGE
    settle(world, operator)


def test_what_cannot_be_used_is_said_and_never_runs_on_the_cpu(
    world: World, operator: Operator, machines: Any
) -> None:
    for kind, (labels, resource, _) in REFUSED.items():
        machines(kind, labels, {resource: 2} if resource else {})
        one_pool(world, kind, {"accelerator": kind})
        world.add_model(kind, poolRef={"name": kind})
    for kind, (_, _, reason) in REFUSED.items():
        found = world.wait("Placed", "False", reason, name=kind)
        assert "flavor gpu" in found["message"], kind
        assert not world.pods(model=kind)
    assert operator.process.poll() is None


def test_types_without_kernels_are_named(
    world: World, operator: Operator, kubelet: Kubelet, machines: Any
) -> None:
    kubelet.outcome = lambda _model: fetched(weight_types=("F32", "Q4_K"))
    machines("npu", {"node.kubernetes.io/npu.chip.name": "910B3"}, {"huawei.com/Ascend910": 8})
    one_pool(world, "npu", {"accelerator": "ascend"})
    world.add_model("weights", poolRef={"name": "npu"})
    found = world.wait("Placed", "False", "UnsupportedWeightType", name="weights")
    assert "Q4_K" in found["message"]
    kubelet.outcome = lambda _model: fetched(weight_types=("F32", "F16"))
    kv = {"kvTypes": {"key": "q8_0", "value": "q8_0"}}
    world.add_model("cells", poolRef={"name": "npu"}, offload=kv)
    world.wait("Placed", "False", "UnsupportedKvType", name="cells")
    assert operator.process.poll() is None


def test_exclusive_devices_have_one_client_and_a_full_cluster_says_what_is_missing(
    world: World, operator: Operator, machines: Any
) -> None:
    machines("one", A100, {GPU: 1})
    one_pool(world, "one", {"accelerator": "nvidia"})
    world.add_model("first", poolRef={"name": "one"})
    world.wait_ready("first")
    world.add_model("second", poolRef={"name": "one"})
    found = world.wait("Placed", "False", "NoNodeFits", name="second")
    assert "1 x nvidia.com/gpu" in found["message"]
    assert "node one with 0 of 1: 1 missing" in found["message"]
    assert not world.pods(model="second")
    world.api.delete(MODEL, world.namespace, "first")
    # A young control plane's garbage collector learns of our kinds within half a minute.
    world.wait_ready("second", timeout_s=120)
    assert operator.process.poll() is None


def test_small_models_share_a_device_as_often_as_its_plugin_says(
    world: World, operator: Operator, machines: Any
) -> None:
    labels = {**A100, "nvidia.com/gpu.replicas": "2"}
    machines("shared", labels, {GPU: 2})
    one_pool(world, "shared", {"accelerator": "nvidia", "sharing": "Shared"})
    for name in ("a", "b"):
        world.add_model(name, poolRef={"name": "shared"})
        world.wait_ready(name)
    device = world.model("a")["status"]["plan"]["device"]
    assert device["memoryPerDevice"] == 81920 * 2**20 // 2
    assert any("do not isolate" in why for why in world.model("a")["status"]["plan"]["reasons"])
    world.add_model("c", poolRef={"name": "shared"})
    world.wait("Placed", "False", "NoNodeFits", name="c")
    # The same node is nobody's alone.
    one_pool(world, "shared", {"accelerator": "nvidia"}, name="alone")
    world.add_model("d", poolRef={"name": "alone"})
    found = world.wait("Placed", "False", "NoNodeFits", name="d")
    assert "shares each device among 2 clients" in found["message"]
    assert operator.process.poll() is None


def test_the_stronger_model_gets_the_last_device_after_its_holders_residence(
    world: World, operator: Operator, machines: Any
) -> None:
    machines("last", A100, {GPU: 1})
    one_pool(world, "last", {"accelerator": "nvidia", "minResidenceSeconds": 3600})
    world.add_model("weak", poolRef={"name": "last"})
    world.wait_ready("weak")
    weak = runtime_of(world, "weak")
    since = moment_of(condition(weak, "Ready")["lastTransitionTime"])
    world.add_model("strong", poolRef={"name": "last"}, priority=10)
    found = world.wait("Placed", "False", "NoNodeFits", name="strong")
    assert "takes the devices of weak (priority 0), which keeps them until" in found["message"]
    settle(world, operator)
    assert not world.pods(model="strong")
    residence = int(time.time() - since) + 4
    flavors = world.api.get(POOL, world.namespace, "last")["spec"]["flavors"]  # type: ignore[index]
    shorter = [flavor | {"minResidenceSeconds": residence} for flavor in flavors]
    world.api.patch(POOL, world.namespace, "last", {"spec": {"flavors": shorter}})
    world.wait_ready("strong")
    strong = runtime_of(world, "strong")
    assert moment_of(strong["metadata"]["creationTimestamp"]) >= since + residence
    lost = world.wait("Placed", "False", "Preempted", name="weak")
    assert "strong (priority 10) took the devices of flavor gpu" in lost["message"]
    assert not world.pods(model="weak")
    settle(world, operator)
    # An equal one gets nothing, and who lost comes back when there is room.
    world.add_model("equal", poolRef={"name": "last"}, priority=10)
    world.wait("Placed", "False", "NoNodeFits", name="equal")
    world.api.delete(MODEL, world.namespace, "equal")
    world.api.delete(MODEL, world.namespace, "strong")
    world.wait_ready("weak", timeout_s=120)


def test_who_loses_a_device_takes_the_next_flavor(
    world: World, operator: Operator, machines: Any
) -> None:
    machines("both", A100, {GPU: 1})
    gpu = {"accelerator": "nvidia", "minResidenceSeconds": 0}
    one_pool(world, "both", gpu, {"name": "cpu"})
    world.add_model("weak", poolRef={"name": "both"})
    world.wait_ready("weak")
    assert limits_of(runtime_of(world, "weak"))
    world.add_model("strong", poolRef={"name": "both"}, priority=1)
    world.wait_ready("strong")
    eventually(
        lambda: [limits_of(pod) for pod in world.pods(model="weak")] == [{}],
        "the weak one has a replica without a device",
    )
    world.wait_ready("weak")
    assert limits_of(runtime_of(world, "strong")) == {GPU: "1"}
    reasons = world.model("weak")["status"]["plan"]["reasons"]
    assert any("strong (priority 1) took the devices" in why for why in reasons)
    assert operator.process.poll() is None


def moment_of(timestamp: str) -> float:
    """In whole seconds, as Kubernetes notes them."""
    return datetime.fromisoformat(timestamp).timestamp()


def foreign_pod(world: World, node: str) -> None:
    """A pod that is not ours has the node's device."""
    container = {"name": "x", "image": "x", "resources": {"limits": {GPU: "1"}}}
    spec = {"nodeName": node, "automountServiceAccountToken": False, "containers": [container]}
    metadata = {"name": f"foreign-{node}", "namespace": world.namespace}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    world.api.create(POD, pod)


def test_replicas_that_no_node_takes_try_the_next_flavor(world: World, machines: Any) -> None:
    operator = world.operators.start(pending_s=2)
    machines("taken", A100, {GPU: 1})
    foreign_pod(world, "taken")
    one_pool(world, "taken", {"accelerator": "nvidia"}, {"name": "cpu"})
    world.add_model("moves", poolRef={"name": "taken"})
    world.wait_ready("moves")
    assert world.model("moves")["status"]["placement"]["flavor"] == "cpu"
    sets = f"{names.LABEL_MODEL}=moves"

    def is_alone() -> bool:
        return len(world.api.items(STATEFULSET, world.namespace, sets)) == 1

    eventually(is_alone, "the set that found no node is gone")
    world.api.delete(POD, world.namespace, "foreign-taken", gracePeriodSeconds=0)
    assert operator.process.poll() is None


def test_a_flavor_that_is_renamed_gets_the_device_of_its_older_replica(
    world: World, machines: Any
) -> None:
    operator = world.operators.start(pending_s=2)
    machines("renamed", A100, {GPU: 1})
    one_pool(world, "renamed", {"accelerator": "nvidia"}, {"name": "cpu"})
    version = world.add_model("stays", poolRef={"name": "renamed"})["metadata"]["resourceVersion"]
    world.wait_ready("stays")
    pool = world.api.get(POOL, world.namespace, "renamed")
    assert pool is not None
    gpu, cpu = pool["spec"]["flavors"]
    flavors = [gpu | {"name": "other"}, cpu]
    world.api.patch(POOL, world.namespace, "renamed", {"spec": {"flavors": flavors}})

    def has_moved() -> bool:
        pods = [pod for pod in world.pods(model="stays") if not is_deleting(pod)]
        return [labels_of(pod)[names.LABEL_FLAVOR] for pod in pods] == ["other"]

    eventually(has_moved, "the older replica makes room")
    world.wait_ready("stays")
    states = world.api.history(MODEL, world.namespace, version)
    placed = ((state.get("status") or {}).get("placement") or {} for state in states)
    assert {each["flavor"] for each in placed if each} == {"gpu", "other"}
    assert operator.process.poll() is None


def test_where_no_flavor_has_a_node_replicas_wait_in_each_and_do_not_hurry(
    world: World, machines: Any
) -> None:
    operator = world.operators.start(pending_s=3)
    for name in ("x", "y"):
        machines(name, A100, {GPU: 1})
        foreign_pod(world, name)
    flavors = [
        {"name": name, "accelerator": "nvidia", "nodeSelector": {"kind": name}}
        for name in ("x", "y")
    ]
    one_pool(world, "x", *flavors, name="two")
    start = time.monotonic()
    version = world.add_model("waits", poolRef={"name": "two"})["metadata"]["resourceVersion"]

    def tried() -> list[str]:
        states = [each.get("status") or {} for each in world.api.history(MODEL, ns, version)]
        flavors = [(status.get("placement") or {}).get("flavor", "") for status in states]
        return [flavor for flavor, _ in groupby(filter(None, flavors))]

    ns = world.namespace
    eventually(lambda: len(tried()) >= 3, "it has moved on twice")
    assert tried()[:3] == ["x", "y", "x"]
    assert time.monotonic() - start >= 2 * (3 - 1)  # Kubernetes notes whole seconds.
    world.api.delete(POD, world.namespace, "foreign-x", gracePeriodSeconds=0)
    world.api.delete(POD, world.namespace, "foreign-y", gracePeriodSeconds=0)
    world.wait_ready("waits")
    assert operator.process.poll() is None


def test_a_claim_template_is_passed_through(
    world: World, operator: Operator, machines: Any, at_least: Callable[[int], bool]
) -> None:
    if not at_least(34):
        pytest.skip("resourceClaims came with Kubernetes 1.34; test_older_kubernetes.py has more")
    machines("dra", {}, {})
    flavor = {
        "accelerator": "nvidia",
        "resourceClaimTemplateName": "gpus",
        "memoryPerDevice": "80Gi",
    }
    one_pool(world, "dra", flavor)
    world.add_model("claims", poolRef={"name": "dra"})
    pods = eventually(lambda: world.pods(model="claims"), "a replica is made")
    claim = {"name": "devices", "resourceClaimTemplateName": "gpus"}
    assert pods[0]["spec"]["resourceClaims"] == [claim]
    resources = pods[0]["spec"]["containers"][0]["resources"]
    assert resources["claims"] == [{"name": "devices"}]
    assert not limits_of(pods[0])
    assert operator.process.poll() is None
