"""Objects for the tests of the controller: models, pools, nodes, facts, outcomes.

Builders: every argument says what the test is about; the rest is a plain, valid object.
"""

from __future__ import annotations

import hashlib
from typing import Any

from terrace.api import names
from terrace.planner.plan import OffloadPlan
from terrace_runtime.contract import (
    FetchFailure,
    FetchOutcome,
    FetchSpec,
    FileFacts,
    LayerRun,
    ModelFacts,
    ProjectorFacts,
)

DIGEST = "d" * 64
MODEL_PATH = f"/models/blobs/{DIGEST}.gguf"


def facts(
    *,
    weights: int = 4_000_000,
    context: int = 2048,
    digest: str = DIGEST,
    weight_types: tuple[str, ...] = (),
) -> ModelFacts:
    """Facts of a small model of four layers; ``weights``: bytes of all layers together."""
    layer = LayerRun(count=4, weight_bytes=weights // 4, kv_heads=2, key_length=64, value_length=64)
    return ModelFacts(
        digest=digest,
        file_bytes=weights + 2_000_000,
        architecture="llama",
        name="demo",
        quantization="Q8_0",
        parameters=weights,
        context_length=context,
        embedding_length=256,
        feed_forward_length=688,
        heads=4,
        vocabulary=4096,
        layers=(layer,),
        token_embedding_bytes=1_000_000,
        output_bytes=1_000_000,
        chat_template=True,
        weight_types=weight_types,
    )


def projector_facts(**changes: Any) -> ProjectorFacts:
    """Facts of a small projector for the model of ``facts``."""
    values: dict[str, Any] = {
        "digest": "b" * 64,
        "file_bytes": 3_000_000,
        "projector_type": "idefics3",
        "name": "demo",
        "quantization": "F16",
        "parameters": 1_400_000,
        "weight_bytes": 2_900_000,
        "image_size": 224,
        "patch_size": 16,
        "max_patches": 197,
        "embedding_length": 192,
        "feed_forward_length": 768,
        "heads": 3,
        "layers": 4,
        "output_length": 256,
        "max_rows": 196,
    }
    return ProjectorFacts.model_validate(values | changes)


def offload_plan(**values: Any) -> OffloadPlan:
    """A plan of four sequences on the flavor ``cpu``; every part has another size."""
    plain = {
        "flavor": "cpu",
        "context_tokens": 2048,
        "parallel": 4,
        "batch_tokens": 512,
        "ubatch_tokens": 512,
        "prefill_tokens": 256,
        "threads": 3,
        "kv_key_type": "f16",
        "kv_value_type": "f16",
        "weights_bytes": 4_000_000,
        "kv_bytes": 8_000_000,
        "compute_bytes": 7_000_000,
        "base_bytes": 120_000_000,
        "memory_request_bytes": 160_000_000,
        "memory_limit_bytes": 180_000_000,
        "cpu_millis": 3000,
    }
    return OffloadPlan.model_validate(plain | values)


def fetched(**values: Any) -> FetchOutcome:
    """The outcome of a fetch that went well."""
    return FetchOutcome(path=MODEL_PATH, facts=facts(**values))


def fetched_file(digest: str = "a" * 64) -> FetchOutcome:
    """The outcome of an adapter's fetch that went well."""
    file = FileFacts(digest=digest, file_bytes=500_000, architecture="llama")
    return FetchOutcome(path=f"/models/blobs/{digest}.gguf", file=file)


def fetched_for(spec: FetchSpec) -> FetchOutcome:
    """What a fetch Job with that spec finds; a source has one content."""
    digest = hashlib.sha256(spec.uri.encode()).hexdigest()
    if spec.role == "adapter":
        return fetched_file(digest)
    path = f"/models/blobs/{digest}.gguf"
    if spec.role == "projector":
        return FetchOutcome(path=path, projector=projector_facts(digest=digest))
    return (
        fetched() if spec.role == "model" else FetchOutcome(path=path, facts=facts(digest=digest))
    )


def not_fetched(reason: str, message: str, *, permanent: bool) -> FetchOutcome:
    """The outcome of a fetch that failed."""
    failure = {"reason": reason, "message": message, "permanent": permanent}
    return FetchOutcome(failure=FetchFailure.model_validate(failure))


def model(
    name: str = "demo", namespace: str = "default", *, pool: str = "default", **spec: Any
) -> dict[str, Any]:
    """An InferenceModel; ``spec`` holds camelCase fields."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.MODEL_KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"poolRef": {"name": pool}, "source": {"uri": "demo://chat"}, **spec},
    }


def pool(
    name: str = "default",
    namespace: str = "default",
    *,
    flavors: tuple[str, ...] = ("cpu",),
    **spec: Any,
) -> dict[str, Any]:
    """An InferencePool; each flavor takes the nodes labelled ``flavor=NAME``, cpu takes all."""
    flavor_specs = [
        {"name": flavor, **({"nodeSelector": {"flavor": flavor}} if flavor != "cpu" else {})}
        for flavor in flavors
    ]
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.POOL_KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"flavors": flavor_specs, "modelCache": {"size": "1Gi"}, **spec},
    }


def node(
    name: str = "node-a",
    *,
    cpu: str = "8",
    memory: str = "16Gi",
    ready: bool = True,
    labels: dict[str, str] | None = None,
    devices: dict[str, int] | None = None,
) -> dict[str, Any]:
    """A node with that much allocatable; ``devices``: extended resource -> count."""
    resources = {"cpu": cpu, "memory": memory, "pods": "500", "ephemeral-storage": "100Gi"}
    resources |= {name: str(count) for name, count in (devices or {}).items()}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {},
        "status": {
            "capacity": resources,
            "allocatable": resources,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def condition(obj: dict[str, Any], kind: str) -> dict[str, Any]:
    """The condition of that type; empty when there is none."""
    for entry in (obj.get("status") or {}).get("conditions") or ():
        if entry["type"] == kind:
            return dict(entry)
    return {}
