"""What a plan puts where, as the runtime is told.

Owns: the runtime's Offload. Does not own: the numbers (``planner/split.py``), the rest of its
settings (``replica_config.py``), their effect (``terrace_runtime.backend.offload``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace_runtime.contract import Offload

if TYPE_CHECKING:
    from terrace.planner.plan import OffloadPlan


def replica_offload(plan: OffloadPlan) -> Offload:
    """Which bytes of the model lie where."""
    device = plan.device
    if device is None:
        # Its image has no device to use, whatever the number of layers says.
        return Offload(weights=plan.weights)
    return Offload(
        device_layers=device.device_layers,
        expert_layers_on_host=device.expert_layers_on_host,
        kv_on_device=device.kv_on_device,
        tensor_split=device.tensor_split,
        weights=plan.weights,
    )
