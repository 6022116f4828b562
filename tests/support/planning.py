"""Builders for the planner's inputs: facts of known models, nodes, specs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from terrace.api.model import ModelSpec
from terrace.api.pool import PoolSpec
from terrace.planner import placement
from terrace.planner.inputs import Cluster, ModelInputs, Usage
from terrace.planner.nodes import NodeFacts, Taint
from terrace_runtime.contract import LayerRun, ModelFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from terrace.planner.placement import Placement
    from terrace.planner.rooms import NoPlacement

MIB, GIB = 1 << 20, 1 << 30


def demo_facts(**changes: Any) -> ModelFacts:
    """``demo/chat.gguf``: 5 layers, d 192, 1 KV head of 64, vocabulary 2,048."""
    values: dict[str, Any] = {
        "digest": "d" * 64,
        "file_bytes": 2_580_416,
        "architecture": "llama",
        "parameters": 2_361_408,
        "context_length": 4096,
        "embedding_length": 192,
        "feed_forward_length": 512,
        "vocabulary": 2048,
        "layers": (
            LayerRun(count=5, weight_bytes=419_328, kv_heads=1, key_length=64, value_length=64),
        ),
        "token_embedding_bytes": 417_792,
        "output_bytes": 768,
    }
    return ModelFacts(**(values | changes))


def llama_8b_facts(**changes: Any) -> ModelFacts:
    """Llama 3.1 8B Q4_K_M: 4.92 GB, 32 layers of 8 KV heads of 128, 131,072 tokens."""
    values: dict[str, Any] = {
        "digest": "8" * 64,
        "file_bytes": 4_920_739_232,
        "architecture": "llama",
        "parameters": 8_030_261_312,
        "context_length": 131_072,
        "embedding_length": 4096,
        "feed_forward_length": 14336,
        "heads": 32,
        "vocabulary": 128_256,
        "layers": (
            LayerRun(
                count=32, weight_bytes=131_000_000, kv_heads=8, key_length=128, value_length=128
            ),
        ),
        "token_embedding_bytes": 295_501_824,
        "output_bytes": 430_960_640,
        "repacked_bytes": 2_600_000_000,
    }
    return ModelFacts(**(values | changes))


def node(name: str = "node-a", **changes: Any) -> NodeFacts:
    """A ready node of 8 CPUs and 32 GiB."""
    values: dict[str, Any] = {
        "name": name,
        "labels": {},
        "taints": (),
        "unschedulable": False,
        "ready": True,
        "cpu_millis": 8000,
        "memory_bytes": 32 * GIB,
    }
    return NodeFacts(**(values | changes))


def taint(key: str, effect: str = "NoSchedule", value: str = "") -> Taint:
    """A taint."""
    return Taint(key, effect, value)


def model(**spec: Any) -> ModelSpec:
    """An InferenceModel's spec, fields as in YAML."""
    least = {"poolRef": {"name": "default"}, "source": {"uri": "demo://chat"}}
    return ModelSpec.model_validate(least | spec)


def pool(*flavors: dict[str, Any], **spec: Any) -> PoolSpec:
    """An InferencePool's spec, fields as in YAML; one flavor ``cpu`` unless others are given."""
    return PoolSpec.model_validate({"flavors": list(flavors) or [{"name": "cpu"}]} | spec)


def place(
    facts: ModelFacts,
    spec: ModelSpec,
    pool_spec: PoolSpec,
    nodes: Iterable[NodeFacts],
    used: Mapping[str, int],
) -> Placement | NoPlacement:
    """``placement.place`` for a model of nothing but facts and spec; ``used`` is memory."""
    return placement.place(
        ModelInputs(facts, spec), pool_spec, Cluster(tuple(nodes), Usage(dict(used)))
    )
