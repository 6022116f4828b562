"""Every metric of each component as its own code renders it, with every label set once.

Owns: exercising the components' metrics. The run against a real cluster proves that nothing is
missing here (``test_run.py``).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from support.gateway import SyncedWatch, raw_model, raw_pod
from terrace.api import names
from terrace.api.names import Key
from terrace.controller.cache import Change
from terrace.controller.kinds import JOB, MODEL, POD, POOL, WATCHED_KINDS, Kind
from terrace.controller.metrics import Metrics as OperatorMetrics
from terrace.gateway.limits import Admission, Limits
from terrace.gateway.metrics import Metrics as GatewayMetrics
from terrace.gateway.registry import Registry
from terrace_runtime.contract import (
    CacheReport,
    Capabilities,
    EngineReport,
    MemoryReport,
    RuntimeReport,
    TierReport,
)
from terrace_runtime.contract.node import (
    ContainerMemory,
    CpuReport,
    NodeReport,
    PressureReport,
)
from terrace_runtime.device_telemetry.metrics import DeviceMetrics
from terrace_runtime.device_telemetry.sample import DeviceSample
from terrace_runtime.device_telemetry.sampler import DeviceSampler
from terrace_runtime.metrics import Metrics as RuntimeMetrics
from terrace_runtime.node.metrics import NodeMetrics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric

    from terrace_runtime.node.report import NodeWatch

GENERIC = ("process_", "python_")
"""Families of the client library itself."""
_OF_SAMPLES = {"le", "quantile"}


@dataclass(frozen=True)
class Family:
    """One metric as a scrape shows it."""

    name: str
    """As Prometheus stores it; of a histogram, without _bucket, _count and _sum."""
    kind: str
    labels: frozenset[str]
    text: str

    @property
    def series(self) -> set[str]:
        """Names under which Prometheus stores its samples."""
        if self.kind == "histogram":
            return {f"{self.name}{end}" for end in ("_bucket", "_count", "_sum")}
        return {self.name}


def families(text: str) -> dict[str, Family]:
    """What an exposition text tells, by name."""
    return {each.name: each for each in map(_family, text_string_to_metric_families(text))}


def operator_text() -> str:
    """All of the operator's metrics."""
    metrics = OperatorMetrics()
    conditions = [{"type": "Ready", "status": "True", "reason": "Ready"}]
    status = {
        "conditions": conditions,
        "plan": {"bytes": {"weights": 1}},
        "download": {"doneBytes": 1, "totalBytes": 2},
    }
    labels = names.selector_labels("demo")
    for kind, manifest in (
        (MODEL, {"status": status}),
        (POOL, {"status": {"conditions": conditions}}),
        (JOB, {"status": {}}),
        (POD, {"metadata": {"labels": labels}, "status": {}}),
    ):
        metrics.objects.see(_change(kind, manifest))
    metrics.observe_call("apply", "services", "200", 0.1)
    metrics.observe_reconcile("InferenceModel", "success", 0.1)
    for kind in WATCHED_KINDS:
        for each in (
            metrics.cache_objects,
            metrics.cache_event_age,
            metrics.cache_list_age,
        ):
            each.labels(kind.plural).set(1)
        for counter in (metrics.watch_events, metrics.full_lists, metrics.missed_deletions):
            counter.labels(kind.plural).inc()
    return metrics.render().decode()


def gateway_text() -> str:
    """All of the gateway's metrics."""
    registry, key = Registry(), Key("default", "demo")
    registry.apply_model(raw_model())
    registry.apply_pod(raw_pod())
    metrics = GatewayMetrics(registry, SyncedWatch(), Admission(Limits()))
    metrics.started(key)
    metrics.first_byte(key, 0.1)
    metrics.transferred(key, 1, 2)
    metrics.upstream_failed(key, "connect")
    metrics.ended(key, 200, 0.2)
    metrics.refused("model_not_found")
    return asyncio.run(metrics.render()).decode()


def runtime_text() -> str:
    """All of a replica's metrics, as if it had everything."""
    registry = CollectorRegistry()
    metrics = RuntimeMetrics(registry)
    metrics.count_request("chat", "stop")
    metrics.count_tenant("", "stop", 1, 1)
    metrics.watch(_report, lambda: 0.5)
    sampler = DeviceSampler(lambda: ())
    sampler.samples = (DeviceSample("GPU-1", "H100", "nvidia", 0.5, 1, 2, 3, 4, 5, ("power-cap",)),)
    registry.register(DeviceMetrics(sampler))
    watch = cast("NodeWatch", SimpleNamespace(report=_node()))
    registry.register(NodeMetrics(watch))
    return generate_latest(registry).decode()


COMPONENTS = {"operator": operator_text, "gateway": gateway_text, "runtime": runtime_text}


def all_families() -> dict[str, Family]:
    """Of all components; those of the client library once."""
    found: dict[str, Family] = {}
    for text in COMPONENTS.values():
        found |= families(text())
    return found


def _change(kind: Kind, manifest: dict[str, Any]) -> Change:
    metadata = {"name": "demo", "namespace": "default", **manifest.get("metadata", {})}
    return Change(kind, Key("default", "demo"), None, {**manifest, "metadata": metadata})


def _report() -> RuntimeReport:
    tiers = tuple(TierReport(name=name) for name in ("device", "host", "disk"))
    return RuntimeReport(
        build="b",
        model="demo",
        model_digest="d",
        plan_digest="p",
        state="ready",
        context_tokens=256,
        parallel=4,
        threads=2,
        memory=MemoryReport(weights_bytes=1, kv_bytes=1, compute_bytes=1, anonymous_peak_bytes=1),
        capabilities=Capabilities(takes_images=True),
        adapters=("french",),
        engine=EngineReport(cache=CacheReport(block_tokens=32, tiers=tiers)),
    )


def _node() -> NodeReport:
    amount = 1
    memory = ContainerMemory(
        limit_bytes=amount,
        high_bytes=amount,
        used_bytes=amount,
        working_set_bytes=amount,
        peak_bytes=amount,
        oom_kills=amount,
        limit_hits=amount,
    )
    cpu = CpuReport(quota=1.0, periods=1, throttled_periods=1, throttled_seconds=1.0)
    pressure = PressureReport(resource="cpu", some=0, full=0, some_seconds=0, full_seconds=0)
    return NodeReport(cpu=cpu, memory=memory, pressure=(pressure,))


def _family(metric: Metric) -> Family:
    name = metric.name
    if metric.type == "counter":
        name = f"{name.removesuffix('_total')}_total"
    labels = _labels(metric.samples) - _OF_SAMPLES
    return Family(name, metric.type, frozenset(labels), metric.documentation)


def _labels(samples: Iterable[Any]) -> set[str]:
    return {label for sample in samples for label in sample.labels}
