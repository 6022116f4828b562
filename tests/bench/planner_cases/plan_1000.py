"""plan-1000: plan and place one model on 1,000 nodes, by the thread's own time.

Owns: the cluster and the pool. Every node is another vendor's or product's, the pool has the most
flavors there may be, the models are the published shapes; half of the devices are taken, and of
half of the flavors all are. Facts of nodes are read once, as the operator's inventory does; the
first placement of each model on nodes that nobody looked at yet is told beside it. Nothing waits
for anything here, so that the thread's time is what the clock shows on a core of its own.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from bench.verdict import Metric, absolute, significant
from support.model_shapes import SHAPES, facts
from support.planning import GIB, model, node, pool
from terrace.planner.inputs import Cluster, ModelInputs, Usage
from terrace.planner.placement import Placement, place

if TYPE_CHECKING:
    from bench.verdict import Line
    from terrace.planner.nodes import NodeFacts

METRIC = Metric("plan-1000", "ms", 10.0, less_is_better=True)
NODES = 1000
ROUNDS = 15
DEVICES = 8
NVIDIA = {
    "NVIDIA-H100-80GB-HBM3": 81559,
    "NVIDIA-A100-SXM4-80GB": 81920,
    "NVIDIA-L40S": 46068,
    "Tesla-T4": 15360,
}
KINDS: tuple[tuple[str, dict[str, str]], ...] = (
    *(
        ("nvidia.com/gpu", {"nvidia.com/gpu.product": name, "nvidia.com/gpu.memory": str(size)})
        for name, size in NVIDIA.items()
    ),
    ("amd.com/gpu", {"amd.com/gpu.product-name": "MI300X", "amd.com/gpu.vram": "191G"}),
    ("gpu.intel.com/xe", {"gpu.intel.com/product": "Max_1550"}),
    ("huawei.com/Ascend910", {"node.kubernetes.io/npu.chip.name": "910B3"}),
    ("", {}),
)
FLAVORS: tuple[dict[str, Any], ...] = (
    {"name": "none", "accelerator": "nvidia", "nodeSelector": {"zone": "nowhere"}},
    {"name": "eight", "accelerator": "nvidia", "count": 8, "sharing": "Exclusive"},
    {"name": "ascend", "accelerator": "ascend"},
    {"name": "intel", "accelerator": "intel-gpu"},
    {"name": "t4", "accelerator": "nvidia", "nodeSelector": {"nvidia.com/gpu.product": "Tesla-T4"}},
    {"name": "nvidia", "accelerator": "nvidia"},
    {"name": "amd", "accelerator": "amd"},
    {"name": "cpu"},
)


def run() -> Line:
    """The slowest model's median, with a row per model."""
    spec = pool(*FLAVORS)
    rows = []
    for name in SHAPES:
        inputs = ModelInputs(facts(name), model())
        nodes = tuple(make_node(number) for number in range(NODES))
        cluster = Cluster(nodes, half_taken(nodes))
        times = []
        for _ in range(ROUNDS):
            start = time.thread_time()
            placed = place(inputs, spec, cluster)
            times.append((time.thread_time() - start) * 1e3)
        first, *warm = times
        rows.append(
            {
                "model": name,
                "flavor": placed.flavor.name if isinstance(placed, Placement) else "-",
                "ms": significant(statistics.median(warm)),
                "best ms": significant(min(warm)),
                "first ms": significant(first),
            }
        )
    worst = max(rows, key=lambda row: float(str(row["ms"])))
    median = statistics.median(float(str(row["ms"])) for row in rows)
    first = statistics.median(float(str(row["first ms"])) for row in rows)
    also = (
        f"{len(rows)} models on {NODES} nodes of {len(KINDS)} kinds, {len(FLAVORS)} flavors; "
        f"median {median:.1f} ms, worst {worst['model']}; on nodes never looked at {first:.1f} ms"
    )
    line = absolute(METRIC, [{METRIC.id: float(str(worst["ms"]))}])
    return {**line, "rounds": ROUNDS * len(rows), "also": also, "rows": rows}


def make_node(number: int) -> NodeFacts:
    """A node of one of the kinds, with labels as many as real ones have."""
    resource, labels = KINDS[number % len(KINDS)]
    plain = {f"feature.node.kubernetes.io/cpu-{each}": "true" for each in range(40)}
    return node(
        f"node-{number:04}",
        labels=plain | labels | {"zone": f"z{number % 3}"},
        resources={resource: DEVICES} if resource else {},
        memory_bytes=512 * GIB,
        cpu_millis=64_000,
    )


def half_taken(nodes: tuple[NodeFacts, ...]) -> Usage:
    """All devices of Ascend and Intel, half of the others'."""
    full = ("huawei.com/Ascend910", "gpu.intel.com/xe")
    devices: dict[str, dict[str, int]] = {}
    for each in nodes:
        for resource, count in each.resources.items():
            taken = count if resource in full else count // 2
            devices.setdefault(resource, {})[each.name] = taken
    return Usage({each.name: 16 * GIB for each in nodes}, devices)
