"""The gateway's Prometheus metrics: one registry, one process, labels that no client chooses.

Owns: names, labels and buckets. Does not own: when things are counted (``proxy.py``), what is read
at a scrape (``view_metrics.py``). The model label holds only InferenceModels that exist, the first
MAX_MODELS of them; those that are gone are dropped at the next scrape.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from terrace import __version__
from terrace.gateway.view_metrics import MAX_MODELS, ViewMetrics

if TYPE_CHECKING:
    from terrace.api.names import Key
    from terrace.gateway.limits import Admission
    from terrace.gateway.registry import Registry
    from terrace.gateway.view_metrics import Watch

UNKNOWN = ""
"""The model label of requests that named no existing model."""
OTHER = "other"
"""That of models beyond MAX_MODELS."""
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_MODEL = ("model",)


class Metrics:
    """Counters of the requests and a view of the registry at the time of the scrape."""

    def __init__(self, registry: Registry, watch: Watch, admission: Admission) -> None:
        self._models = registry
        self._prometheus = CollectorRegistry(auto_describe=False)
        self._labels: dict[Key, str] = {}
        self._under_way: dict[Key, int] = {}
        self._add_requests()
        self._add_replicas()
        self._prometheus.register(ViewMetrics(registry, watch, admission))
        build = self._gauge("build_info", "1; version of the gateway.", "version")
        build.labels(__version__).set(1)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._prometheus)

    def _add_requests(self) -> None:
        self._requests = self._counter(
            "requests",
            "Requests that ended, by model and status; 499 is a client that left.",
            *_MODEL,
            "code",
        )
        self._refusals = self._counter(
            "refusals",
            "Errors of the gateway's own, by their code as clients see it.",
            "reason",
        )
        self._in_flight = self._gauge("requests_in_flight", "Requests under way.", *_MODEL)
        self._duration = self._histogram(
            "request_seconds", "From the request's headers to the last byte of the answer."
        )

    def _add_replicas(self) -> None:
        self._first_byte = self._histogram(
            "time_to_first_byte_seconds",
            "From the request's headers to the first byte of the replica's answer.",
        )
        self._failures = self._counter(
            "upstream_failures",
            "Replicas that could not be reached (connect) or died while answering.",
            *_MODEL,
            "stage",
        )
        self._received = self._counter(
            "request_bytes", "Bytes of request bodies that went to replicas.", *_MODEL
        )
        self._sent = self._counter(
            "response_bytes", "Bytes of answers that came from replicas.", *_MODEL
        )
        self._by_model = (
            self._requests,
            self._in_flight,
            self._duration,
            self._first_byte,
            self._failures,
            self._received,
            self._sent,
        )

    def started(self, model: Key) -> None:
        """A request for an existing model begins; call ``ended`` once."""
        self._under_way[model] = self._under_way.get(model, 0) + 1
        self._in_flight.labels(self._label(model)).inc()

    def ended(self, model: Key | None, code: int, seconds: float) -> None:
        """A request ended; ``model`` is None where none was resolved."""
        label = UNKNOWN if model is None else self._label(model)
        self._requests.labels(label, str(code)).inc()
        if model is not None:
            self._under_way[model] -= 1
            if not self._under_way[model]:
                del self._under_way[model]
            self._in_flight.labels(label).dec()
            self._duration.labels(label).observe(seconds)

    def refused(self, reason: str) -> None:
        """The gateway itself answers with an error; ``reason`` is one of our own codes."""
        self._refusals.labels(reason).inc()

    def first_byte(self, model: Key, seconds: float) -> None:
        """The replica's answer begins."""
        self._first_byte.labels(self._label(model)).observe(seconds)

    def upstream_failed(self, model: Key, stage: str) -> None:
        """``stage`` is connect, before_first_byte or mid_stream."""
        self._failures.labels(self._label(model), stage).inc()

    def transferred(self, model: Key, received: int, sent: int) -> None:
        """Bytes of a request's body and of its answer."""
        label = self._label(model)
        self._received.labels(label).inc(received)
        self._sent.labels(label).inc(sent)

    async def render(self) -> bytes:
        """The exposition text; made in a thread, so that answers go on meanwhile."""
        self._drop_gone_models()
        return await asyncio.to_thread(generate_latest, self._prometheus)

    def _label(self, model: Key) -> str:
        label = self._labels.get(model)
        if label is None:
            # Kept while the model exists: what begins under a label ends under it.
            label = str(model) if len(self._labels) < MAX_MODELS else OTHER
            self._labels[model] = label
        return label

    def _drop_gone_models(self) -> None:
        gone = [model for model in self._labels if not self._models.knows(model)]
        # A request that outlives its model ends under the label under which it began.
        for model in [model for model in gone if model not in self._under_way]:
            label = self._labels.pop(model)
            for metric in self._by_model if label != OTHER else ():
                metric.remove_by_labels({"model": label})

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"terrace_gateway_{name}", text, labels, registry=self._prometheus)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"terrace_gateway_{name}", text, labels, registry=self._prometheus)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(
            f"terrace_gateway_{name}", text, _MODEL, buckets=_SECONDS, registry=self._prometheus
        )
