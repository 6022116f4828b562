"""What devices add to a replica's pod, image by image and row by row."""

from __future__ import annotations

from typing import Any

import pytest

from support.controller_objects import offload_plan
from terrace.api.pool import Flavor
from terrace.controller.config import (
    BadConfigError,
    OperatorConfig,
    accelerator_table,
    config_from_env,
)
from terrace.controller.device_pods import Installation, add_devices
from terrace.planner.accelerators import PodDetails
from terrace.planner.plan import DevicePlan, OffloadPlan

GPU = "nvidia.com/gpu"
OWN = {"model": "demo"}
BARE: dict[str, Any] = {
    "securityContext": {"runAsUser": 1},
    "containers": [
        {"name": "runtime", "env": [], "resources": {"requests": {}, "limits": {"memory": "1"}}}
    ],
}


def device(**fields: Any) -> DevicePlan:
    plain = {
        "accelerator": "nvidia",
        "backend": "cuda",
        "resource": GPU,
        "count": 1,
        "memory_bytes": 1 << 30,
        "device_layers": 1,
    }
    return DevicePlan.model_validate(plain | fields)


def plan(**fields: Any) -> OffloadPlan:
    return offload_plan().model_copy(update={"device": device(), **fields})


def pod(plan: OffloadPlan, details: PodDetails | None = None, beside: Any = None) -> dict[str, Any]:
    return add_devices(BARE, plan, details or PodDetails(), own=OWN, beside=beside)


def test_without_devices_nothing_is_added() -> None:
    assert pod(offload_plan()) == BARE


def test_a_replica_asks_for_the_resource() -> None:
    made = pod(plan(device=device(count=2)))
    assert made["containers"][0]["resources"]["limits"] == {"memory": "1", GPU: "2"}
    assert "resourceClaims" not in made
    assert BARE["containers"][0]["resources"]["limits"] == {"memory": "1"}


def test_a_claim_template_takes_the_resources_place() -> None:
    made = pod(plan(device=device(resource="", claim_template="gpus")))
    claim = {"name": "devices", "resourceClaimTemplateName": "gpus"}
    assert made["resourceClaims"] == [claim]
    resources = made["containers"][0]["resources"]
    assert resources["claims"] == [{"name": "devices"}]
    assert resources["limits"] == {"memory": "1"}


def test_the_plans_labels_are_required_and_its_nodes_preferred_in_order() -> None:
    labels = (("product", ("A", "B")),)
    made = pod(plan(device=device(node_labels=labels), preferred_nodes=("n2", "n1")))
    affinity = made["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [{"key": "product", "operator": "In", "values": ["A", "B"]}]
    preferred = affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [each["preference"]["matchFields"][0]["values"] for each in preferred] == [
        ["n2"],
        ["n1"],
    ]
    assert preferred[0]["weight"] > preferred[1]["weight"]


def test_replicas_are_spread_unless_one_node_has_their_volume() -> None:
    (spread,) = pod(plan())["topologySpreadConstraints"]
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"
    assert spread["labelSelector"] == {"matchLabels": OWN}
    tied = pod(plan(), beside={"pool": "default"})
    assert "topologySpreadConstraints" not in tied
    affinity = tied["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert affinity[0]["podAffinityTerm"]["labelSelector"] == {"matchLabels": {"pool": "default"}}


def test_the_row_adds_environment_groups_and_runtime_class() -> None:
    details = PodDetails(
        env={"B": "2", "A": "1"}, supplemental_groups=(44, 109), runtime_class_name="nvidia"
    )
    made = pod(plan(), details)
    assert [each["name"] for each in made["containers"][0]["env"]] == ["A", "B"]
    assert made["securityContext"] == {"runAsUser": 1, "supplementalGroups": [44, 109]}
    assert made["runtimeClassName"] == "nvidia"


@pytest.mark.parametrize(
    ("fields", "images", "image"),
    [
        ({}, {}, "runtime:1-cuda"),
        ({"accelerator": "ascend-310p", "backend": "cann"}, {}, "runtime:1-cann-310p"),
        ({"accelerator": "gone", "backend": "rocm"}, {}, "runtime:1-rocm"),
        ({}, {"cuda": "mine:2"}, "mine:2"),
        ({}, {"cuda": "mine:2", "nvidia": "theirs:3"}, "theirs:3"),
    ],
)
def test_the_image_is_that_of_the_backend(
    fields: dict[str, Any], images: dict[str, str], image: str
) -> None:
    installed = Installation("runtime:1", images)
    flavor = Flavor(name="gpu", accelerator="nvidia")
    assert installed.image_of(flavor, device(**fields)) == image
    assert installed.image_of(flavor, None) == "runtime:1"
    own = Flavor(name="gpu", accelerator="nvidia", runtime_image="own:9")
    assert installed.image_of(own, device(**fields)) == "own:9"


def config(**settings: str) -> OperatorConfig:
    least = {"POD_NAME": "o", "POD_NAMESPACE": "n", "TERRACE_RUNTIME_IMAGE": "runtime:1"}
    return config_from_env(least | settings)


def test_a_digest_takes_no_suffix_so_such_rows_need_images() -> None:
    pinned = {"TERRACE_RUNTIME_IMAGE": f"runtime@sha256:{'a' * 64}"}
    assert not accelerator_table(config(), None).without_image
    without = accelerator_table(config(**pinned), None).without_image
    assert {"nvidia", "amd"} <= without
    assert "cpu" not in without
    images = {"TERRACE_RUNTIME_IMAGES": '{"cuda": "runtime-cuda@sha256:1"}'}
    assert "nvidia" not in accelerator_table(config(**pinned, **images), None).without_image


@pytest.mark.parametrize(
    ("images", "text", "named"),
    [
        ('{"cudda": "x"}', None, "TERRACE_RUNTIME_IMAGES: no backend or accelerator is called"),
        ("{}", "accelerators: [{name: x}]", "accelerators.x.title: Field required"),
    ],
)
def test_what_the_operator_cannot_use_is_refused_at_its_start(
    images: str, text: str | None, named: str
) -> None:
    with pytest.raises(BadConfigError) as error:
        accelerator_table(config(TERRACE_RUNTIME_IMAGES=images), text)
    assert named in str(error.value)


def test_images_that_are_no_map_are_refused() -> None:
    with pytest.raises(BadConfigError, match="TERRACE_RUNTIME_IMAGES"):
        config(TERRACE_RUNTIME_IMAGES="cuda=x")
