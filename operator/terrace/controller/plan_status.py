"""A plan as ``status.plan`` shows it, and what a plan that waits would change.

Owns: the translation and the words. Does not own: the plan (``planner``), the rest of the status
(``status.py``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.api.plan_status import PlanStatus
from terrace.planner.nodes import format_bytes

if TYPE_CHECKING:
    from terrace.controller.placing import Decision
    from terrace.planner.plan import DevicePlan, OffloadPlan

_TOLD = (
    "flavor",
    "context_tokens",
    "parallel",
    "threads",
    "host_bytes",
    "disk_bytes",
    "memory_limit_bytes",
)
"""Fields whose change is worth a word."""
_TOLD_OF_DEVICES = ("product", "count", "device_layers", "expert_layers_on_host", "tensor_split")


def plan_status(decision: Decision) -> PlanStatus:
    """The plan that replicas run with, and the one that waits."""
    plan, pending = decision.plan, decision.pending
    return PlanStatus.model_validate(
        {
            "digest": plan.digest,
            "context": plan.context_tokens,
            "parallel": plan.parallel,
            "threads": plan.threads,
            "batchTokens": plan.batch_tokens,
            "kvTypes": {"key": plan.kv_key_type, "value": plan.kv_value_type},
            "kvLayout": _layout(plan),
            "kvBlockTokens": plan.block_tokens,
            "weights": plan.weights,
            "tiers": {
                "host": plan.host_bytes,
                "disk": plan.disk_bytes,
                "prefetchWindow": plan.prefetch_bytes,
                "volume": _volume(plan),
            },
            "bytes": {
                "weights": plan.weights_bytes,
                "kv": plan.kv_bytes,
                "compute": plan.compute_bytes,
                "base": plan.base_bytes,
                "tiers": plan.tiers_bytes,
            },
            "device": plan.device and _device(plan.device),
            "requests": {"cpu": f"{plan.cpu_millis}m", "memory": str(plan.memory_request_bytes)},
            "limits": {"memory": str(plan.memory_limit_bytes)},
            "reasons": list(plan.reasons),
            "pending": pending and {"digest": pending.digest, "reason": difference(plan, pending)},
        }
    )


def difference(plan: OffloadPlan, pending: OffloadPlan) -> str:
    """What the pending plan would change, in one sentence."""
    mine, theirs = plan.model_dump(), pending.model_dump()
    mine |= {f"device {name}": value for name, value in _told_of(plan.device).items()}
    theirs |= {f"device {name}": value for name, value in _told_of(pending.device).items()}
    changes = [
        f"{field} {mine[field]} -> {theirs[field]}"
        for field in (*_TOLD, *(f"device {name}" for name in _TOLD_OF_DEVICES))
        if mine[field] != theirs[field]
    ]
    return ", ".join(changes) or "other buffer sizes"


def _told_of(device: DevicePlan | None) -> dict[str, object]:
    told = device.model_dump() if device else {}
    return {name: told.get(name, "none") for name in _TOLD_OF_DEVICES}


def _device(device: DevicePlan) -> dict[str, object]:
    on_device = device.device_layers - 1  # The output head counts as one.
    return {
        "accelerator": device.accelerator,
        "product": device.product,
        "resource": device.resource,
        "count": device.count,
        "memoryPerDevice": device.memory_bytes,
        "layers": on_device,
        "layersOnHost": device.layers - on_device,
        "expertLayersOnHost": device.expert_layers_on_host,
        "feedForwardOnHost": device.feed_forward_on_host,
        "tensorSplit": list(device.tensor_split),
        "bytes": {
            "weights": device.weights_bytes,
            "kv": device.kv_bytes,
            "compute": device.compute_bytes,
        },
    }


def _volume(plan: OffloadPlan) -> str:
    """Where the disk tier lies, in words; empty without one."""
    volume = plan.volume
    if volume is None:
        return ""
    size = format_bytes(volume.bytes)
    if volume.claim:
        return f"claim {volume.claim}, a folder for each replica"
    if volume.is_ephemeral:
        return f"emptyDir of {size}"
    of_class = f" of class {volume.storage_class}" if volume.storage_class else ""
    return f"claim of {size}{of_class} for each replica"


def _layout(plan: OffloadPlan) -> str:
    if plan.kv_auto:
        return "Auto"
    return "Unified" if plan.kv_unified else "Split"
