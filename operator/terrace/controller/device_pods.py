"""What devices add to a replica's pod: the resource or the claim, image, environment, affinity.

Owns: these fields. Does not own: the rest of the pod (``templates.py``), which devices
(``planner``). Pure. A replica without devices gets nothing of this, and a fetch pod never does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from terrace.planner.accelerators import AcceleratorTable, PodDetails, built_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from terrace.api.pool import Flavor
    from terrace.controller.kinds import Manifest
    from terrace.planner.plan import DevicePlan, OffloadPlan

CLAIM = "devices"
"""Name of the pod's resource claim."""
BEST_NODE, NODE_STEP = 100, 20
"""Weights of the preferred nodes: the best has the most, each after it less."""
TOGETHER = 100
HOSTNAME = "kubernetes.io/hostname"


@dataclass(frozen=True, slots=True)
class Installation:
    """Images and devices that the operator was installed with."""

    runtime_image: str
    """Of replicas without devices, and of fetch Jobs."""
    images: Mapping[str, str] = field(default_factory=dict)
    """llama.cpp's backend, or accelerator -> image, where the suffix of the table does not tell."""
    accelerators: AcceleratorTable = field(default_factory=built_in)

    def image_of(self, flavor: Flavor, device: DevicePlan | None) -> str:
        """The image of a replica: the flavor's, else the one for its backend."""
        if flavor.runtime_image is not None:
            return flavor.runtime_image
        if device is None:
            return self.runtime_image
        named = self.images.get(device.accelerator) or self.images.get(device.backend)
        if named:
            return named
        row = self.accelerators.accelerators.get(device.accelerator)
        # A row that is gone meanwhile: its pods are as they were.
        suffix: str | None = f"-{device.backend}"
        if row is not None and row.backend:
            suffix = self.accelerators.backend_of(row).image_suffix
        return f"{self.runtime_image}{suffix or ''}"

    def pod_of(self, device: DevicePlan) -> PodDetails:
        """What the table says of pods with such devices."""
        row = self.accelerators.accelerators.get(device.accelerator)
        return PodDetails() if row is None else row.pod


def add_devices(
    pod: Manifest,
    plan: OffloadPlan,
    details: PodDetails,
    *,
    own: Mapping[str, str],
    beside: Mapping[str, str] | None,
) -> Manifest:
    """``pod``, whose first container is the runtime, with the plan's devices; unchanged without.

    ``own``: labels that select the model's replicas, which are spread over nodes. ``beside``:
    labels of pods whose node has the model's volume, where only one node can; replicas go there if
    they can, and are not spread.
    """
    if plan.device is None:
        return pod
    device = plan.device
    affinity: dict[str, Any] = {}
    if node_affinity := _node_affinity(device, plan.preferred_nodes):
        affinity["nodeAffinity"] = node_affinity
    if beside is not None:
        affinity["podAffinity"] = _pod_affinity(beside)
    container, *others = pod["containers"]
    security = dict(pod["securityContext"])
    if details.supplemental_groups:
        security["supplementalGroups"] = list(details.supplemental_groups)
    more: Manifest = {"affinity": affinity} if affinity else {}
    if details.runtime_class_name:
        more["runtimeClassName"] = details.runtime_class_name
    if device.claim_template:
        claim = {"name": CLAIM, "resourceClaimTemplateName": device.claim_template}
        more["resourceClaims"] = [claim]
    if beside is None:
        more["topologySpreadConstraints"] = [_spread(own)]
    return {
        **pod,
        "securityContext": security,
        "containers": [_with_device(container, device, details), *others],
        **more,
    }


def _with_device(container: Manifest, device: DevicePlan, details: PodDetails) -> Manifest:
    resources = dict(container["resources"])
    if device.claim_template:
        resources["claims"] = [{"name": CLAIM}]
    else:
        resources["limits"] = {**resources["limits"], device.resource: str(device.count)}
    env = [{"name": name, "value": value} for name, value in sorted(details.env.items())]
    return {**container, "resources": resources, "env": [*container["env"], *env]}


def _node_affinity(device: DevicePlan, preferred: Sequence[str]) -> Manifest:
    affinity: Manifest = {}
    if device.node_labels:
        # The plan's numbers hold for these devices alone.
        expressions = [
            {"key": key, "operator": "In", "values": list(values)}
            for key, values in device.node_labels
        ]
        affinity["requiredDuringSchedulingIgnoredDuringExecution"] = {
            "nodeSelectorTerms": [{"matchExpressions": expressions}]
        }
    terms = [
        {
            "weight": max(1, BEST_NODE - NODE_STEP * place),
            "preference": {
                "matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]
            },
        }
        for place, name in enumerate(preferred)
    ]
    if terms:
        affinity["preferredDuringSchedulingIgnoredDuringExecution"] = terms
    return affinity


def _pod_affinity(beside: Mapping[str, str]) -> Manifest:
    term = {"labelSelector": {"matchLabels": dict(beside)}, "topologyKey": HOSTNAME}
    weighted = {"weight": TOGETHER, "podAffinityTerm": term}
    return {"preferredDuringSchedulingIgnoredDuringExecution": [weighted]}


def _spread(own: Mapping[str, str]) -> Manifest:
    return {
        "maxSkew": 1,
        "topologyKey": HOSTNAME,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(own)},
    }
