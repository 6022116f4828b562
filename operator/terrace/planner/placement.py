"""Which flavor a model gets, and with what plan: the first flavor with a node it fits on.

Owns: the order of flavors, which nodes are of a flavor, defaults and their shrinking, the message
when nothing fits. Does not own: bytes (``footprint.py``), binding (kube-scheduler). Pure.
Next: ``sticky.decide``, then ``terrace.controller.manifests``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.api.conditions import Reason
from terrace.api.quantity import parse_bytes, parse_millis
from terrace.planner.footprint import Shape, footprint
from terrace.planner.nodes import format_bytes
from terrace.planner.plan import OffloadPlan
from terrace.planner.sticky import inputs_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from terrace.api.model import ModelSpec
    from terrace.api.pool import Flavor, PoolSpec
    from terrace.planner.nodes import NodeFacts
    from terrace_runtime.contract import ModelFacts


@dataclass(frozen=True, slots=True)
class Placement:
    """The flavor a model gets and the plan of its replicas."""

    flavor: Flavor
    plan: OffloadPlan


@dataclass(frozen=True, slots=True)
class NoPlacement:
    """Nothing fits: a condition's reason and message, and how many bytes are missing (0: none)."""

    reason: Reason
    message: str
    missing_bytes: int = 0


def place(
    facts: ModelFacts,
    model_spec: ModelSpec,
    pool_spec: PoolSpec,
    nodes: Iterable[NodeFacts],
    used: Mapping[str, int],
) -> Placement | NoPlacement:
    """Choose a flavor and a plan.

    ``used``: bytes of placements decided, other models' only, by node name where a pod is bound
    and by flavor name where it is not yet.
    """
    wanted = model_spec.context.length
    if wanted is not None and wanted > facts.context_length:
        return NoPlacement(
            Reason.CONTEXT_TOO_LONG,
            f"spec.context.length {wanted:,} is over the model's {facts.context_length:,}",
        )
    nodes = list(nodes)
    worst = NoPlacement(Reason.NO_NODE_FITS, "no ready node is of any flavor", 0)
    for flavor in pool_spec.flavors:
        theirs = [
            n
            for n in nodes
            if n.ready and not n.unschedulable and flavor.node_selector.items() <= n.labels.items()
        ]
        if not theirs:
            continue
        cpu = (
            parse_millis(flavor.host.cpu)
            if flavor.host.cpu
            else min(16000, max(1000, min(n.cpu_millis for n in theirs) // 1000 * 1000 - 1000))
        )
        kv = model_spec.offload.kv_types or pool_spec.offload.kv_types
        shape = Shape(
            wanted or min(8192, facts.context_length),
            model_spec.context.parallel or 4,
            512,
            max(1, cpu // 1000),
            kv.key if kv else "f16",
            kv.value if kv else "f16",
        )
        size = footprint(facts, shape)
        free = max(n.memory_bytes - used.get(n.name, 0) for n in theirs) - used.get(flavor.name, 0)
        if flavor.host.memory:
            free = min(free, parse_bytes(flavor.host.memory))
        if size.limit_bytes > free:
            worst = NoPlacement(
                Reason.NO_NODE_FITS,
                f"needs {format_bytes(size.limit_bytes)}; largest free is {format_bytes(free)}",
                size.limit_bytes - free,
            )
            continue
        return Placement(
            flavor,
            OffloadPlan(
                inputs=inputs_digest(facts, model_spec, pool_spec, flavor.name),
                flavor=flavor.name,
                context_tokens=shape.context_tokens,
                parallel=shape.parallel,
                batch_tokens=512,
                ubatch_tokens=512,
                prefill_tokens=256,
                threads=shape.threads,
                kv_key_type=shape.kv_key_type,
                kv_value_type=shape.kv_value_type,
                weights_bytes=size.weights_bytes,
                repacked_bytes=size.repacked_bytes,
                kv_bytes=size.kv_bytes,
                compute_bytes=size.compute_bytes,
                base_bytes=size.base_bytes,
                memory_request_bytes=size.request_bytes,
                memory_limit_bytes=size.limit_bytes,
                cpu_millis=cpu,
                reasons=(f"{shape.parallel} sequences x {shape.context_tokens:,} tokens",),
            ),
        )
    return worst
