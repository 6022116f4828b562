"""What needs a newer API server is refused by an older one in words, and never half done.

`make test-compat` runs these on an older one, where they are refused; `make test-cluster` on the
newest, where they work. docs/compatibility.md has the list.
"""

# ruff: noqa: F811 -- pytest fixtures are imported under the names that tests ask for

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.controller_api import eventually
from cluster.controller_fixtures import api, kubelet, operator, operators, world  # noqa: F401 -- fixtures
from terrace.controller.kinds import JOB

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.controller_operator import Operator
    from cluster.controller_world import World


def test_a_model_in_an_image_is_refused_where_pods_cannot_mount_images(
    world: World, operator: Operator, at_least: Callable[[int], bool]
) -> None:
    world.add_pool()
    world.add_model(source={"uri": "oci://registry.example/models/chat:1#m.gguf"})
    if at_least(35):
        jobs = eventually(lambda: world.api.items(JOB, world.namespace), "a Job looks at it")
        volumes = jobs[0]["spec"]["template"]["spec"]["volumes"]
        assert "registry.example/models/chat:1" in str([v.get("image") for v in volumes])
    else:
        stalled = world.wait("Stalled", "True", "Refused")
        assert "this API server ignores image volumes" in stalled["message"]
        assert not world.api.items(JOB, world.namespace)
    assert operator.process.poll() is None


def test_devices_by_claim_are_refused_where_pods_cannot_have_claims(
    world: World, operator: Operator, at_least: Callable[[int], bool]
) -> None:
    world.kubelet.add_node("dra", cpu="64", memory="64Gi", labels={"kind": "dra"})
    flavor = {"name": "dra", "accelerator": "nvidia", "resourceClaimTemplateName": "gpus",
              "memoryPerDevice": "80Gi", "nodeSelector": {"kind": "dra"}}  # fmt: skip
    world.add_pool(flavors=[flavor])
    world.add_model()
    if at_least(34):
        pods = eventually(world.pods, "a replica is made")
        assert pods[0]["spec"]["resourceClaims"]
    else:
        stalled = world.wait("Stalled", "True", "Refused")
        assert "this API server ignores resourceClaims" in stalled["message"]
        assert not world.pods()
    assert operator.process.poll() is None
