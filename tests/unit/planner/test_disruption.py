"""The table of disruptions against the types and against what really restarts replicas."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.planning import demo_facts
from terrace.api.model import ModelSpec
from terrace.api.pool import PoolSpec
from terrace.api.schema import structural_schema
from terrace.planner.disruption import DISRUPTION, main, page
from terrace.planner.sticky import inputs_digest

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[3] / "docs/disruption.md"

OFFLOAD: dict[str, Any] = {
    "profile": "Balanced",
    "spillThreshold": "512Mi",
    "maxDisk": "64Gi",
    "prefetchWindow": "128Mi",
    "kvBlockTokens": 64,
    "checkpointTokens": 1024,
    "checkpointCount": 8,
    "kvTypes": {"key": "q8_0", "value": "q8_0"},
    "kvLayout": "Unified",
    "disk": {"storageClassName": "a", "claimName": "a", "ephemeral": False},
}
FILE: dict[str, Any] = {
    "uri": "https://host/a.gguf",
    "sha256": "a" * 64,
    "secretRef": {"name": "a"},
}
MODEL: dict[str, Any] = {
    "poolRef": {"name": "default"},
    "source": FILE,
    "projector": FILE,
    "draft": FILE,
    "adapters": [{"name": "poet", "source": FILE, "scale": 0.5}],
    "priority": 1,
    "servedNames": ["a"],
    "context": {"length": 2048, "parallel": 4},
    "offload": OFFLOAD,
    "speculation": {"mode": "NGram", "maxTokens": 3},
    "sampling": {"temperature": 0.1, "topP": 0.1, "topK": 1, "minP": 0.1, "repeatPenalty": 1.1},
    "limits": {"maxTokens": 100},
    "replicas": 1,
}
POOL: dict[str, Any] = {
    "flavors": [
        {
            "name": "cpu",
            "accelerator": "nvidia",
            "count": 1,
            "memoryPerDevice": "1Gi",
            "sharing": "Shared",
            "resourceName": "nvidia.com/gpu",
            "resourceClaimTemplateName": "a",
            "minResidenceSeconds": 1,
            "packing": "Pack",
            "deviceSampling": "Off",
            "nodeSelector": {"a": "b"},
            "tolerations": [
                {
                    "key": "a",
                    "operator": "Equal",
                    "value": "b",
                    "effect": "NoExecute",
                    "tolerationSeconds": 1,
                }
            ],
            "host": {"cpu": "1", "memory": "1Gi"},
            "runtimeImage": "a",
        }
    ],
    "offload": OFFLOAD,
    "modelCache": {
        "size": "1Gi",
        "storageClassName": "a",
        "accessMode": "ReadWriteOnce",
        "deleteUnusedAfterSeconds": 1,
    },
    "sources": {
        "huggingFaceEndpoint": "https://a",
        "s3Endpoint": "https://a",
        "s3Region": "a",
        "ociEndpoint": "https://a",
    },
    "access": {"allowedNetworks": ["10.0.0.0/8"], "cacheIsolation": "Tenant"},
    "queue": {"maxRequests": 1},
    "streams": {"readerTokensPerSecond": 1, "intervalMilliseconds": 1},
    "drainTimeoutSeconds": 1,
}
OTHER = {
    "servedNames": ["b"],
    "uri": "https://host/b.gguf",
    "accelerator": "amd",
    "memoryPerDevice": "2Gi",
    "sharing": "Exclusive",
    "packing": "Spread",
    "deviceSampling": "Auto",
    "sha256": "b" * 64,
    "nodeSelector": {"a": "c"},
    "allowedNetworks": ["10.0.0.0/9"],
    "key": "q4_0",
    "operator": "Exists",
    "effect": "NoSchedule",
    "cpu": "2",
    "memory": "2Gi",
    "size": "2Gi",
    "accessMode": "ReadWriteMany",
    "profile": "DiskHeavy",
    "spillThreshold": "1Gi",
    "maxDisk": "65Gi",
    "prefetchWindow": "64Mi",
    "kvLayout": "Auto",
    "ephemeral": True,
    "mode": "Off",
    "cacheIsolation": "Pool",
}


def leaves(schema: dict[str, Any], path: str) -> Iterator[str]:
    """Paths of all fields that a user can set."""
    if schema.get("type") == "array" and schema["items"].get("type") == "object":
        yield from leaves(schema["items"], f"{path}[]")
    elif "properties" in schema:
        for name, child in schema["properties"].items():
            yield from leaves(child, f"{path}.{name}")
    else:
        yield path


def test_every_field_of_both_kinds_is_in_the_table_and_nothing_else() -> None:
    fields = [
        *leaves(structural_schema(ModelSpec), "InferenceModel.spec"),
        *leaves(structural_schema(PoolSpec), "InferencePool.spec"),
    ]
    assert sorted(fields) == sorted(DISRUPTION)


def changed(spec: dict[str, Any], path: str) -> dict[str, Any]:
    """``spec`` with another value at ``path``."""
    spec = copy.deepcopy(spec)
    where: Any = spec
    *parents, leaf = path.replace("[]", ".0").split(".")
    for step in parents:
        where = where[int(step)] if step.isdecimal() else where[step]
    old = where[leaf]
    number = old / 2 if isinstance(old, float) else old + 1 if isinstance(old, int) else None
    where[leaf] = OTHER.get(leaf, f"{old}2" if number is None else number)
    if path.endswith("kvTypes.value"):
        where[leaf] = "q4_0"
    if path.endswith("tolerations[].key"):
        where[leaf] = "other"
    return spec


def digest(model: dict[str, Any], pool: dict[str, Any]) -> str:
    model = copy.deepcopy(model)
    pool_spec = PoolSpec.model_validate(pool)
    return inputs_digest(demo_facts(), ModelSpec.model_validate(model), pool_spec, "cpu")


def restarts(path: str) -> bool:
    """Does another value of the field give other inputs?"""
    kind, _, field = path.partition(".spec.")
    if kind == "InferenceModel":
        return digest(MODEL, POOL) != digest(changed(MODEL, field), POOL)
    open_model = {key: value for key, value in MODEL.items() if key != "offload"}
    return digest(open_model, POOL) != digest(open_model, changed(POOL, field))


@pytest.mark.parametrize(
    "path",
    [
        path
        for path, what in DISRUPTION.items()
        # An existing claim excludes the other fields.
        if what != "refused"
    ],
)
def test_the_table_says_what_happens(path: str) -> None:
    assert restarts(path) == (DISRUPTION[path] != "in place")


def test_the_page_is_the_one_that_the_table_makes() -> None:
    assert PAGE.read_text() == page(), (
        "run `python -m terrace.planner.disruption docs/disruption.md`"
    )


def test_the_page_is_written_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "disruption.md"
    assert main([str(target), "--check"]) == 1
    assert "is stale" in capsys.readouterr().err
    assert not target.exists()
    assert main([str(target)]) == 0
    assert main([str(target), "--check"]) == 0
