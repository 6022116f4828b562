"""What a plan puts where, as the runtime is told.

Owns: the runtime's Offload. Does not own: the numbers (``planner/split.py``), the rest of its
settings (``replica_config.py``), their effect (``terrace_runtime.backend.offload``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace_runtime.contract import Offload

if TYPE_CHECKING:
    from terrace.planner.plan import OffloadPlan


def _feed_forward_of(layers: int) -> tuple[tuple[str, str], ...]:
    """The dense feed-forward matrices of the first ``layers`` layers, in host memory."""
    numbers = "|".join(map(str, range(layers)))
    return ((rf"^blk\.({numbers})\.ffn_(up|down|gate|gate_up)\.weight$", "CPU"),)


def replica_offload(plan: OffloadPlan) -> Offload:
    """Which bytes of the model lie where."""
    device = plan.device
    if device is None:
        # Its image has no device to use, whatever the number of layers says.
        return Offload(weights=plan.weights)
    layers = device.expert_layers_on_host
    moves_feed_forward = device.feed_forward_on_host and layers > 0
    return Offload(
        device_layers=device.device_layers,
        expert_layers_on_host=0 if moves_feed_forward else layers,
        tensor_overrides=_feed_forward_of(layers) if moves_feed_forward else (),
        kv_on_device=device.kv_on_device,
        tensor_split=device.tensor_split,
        weights=plan.weights,
    )
