"""The gateway's Prometheus metrics: one registry, one process, labels that no client chooses.

Owns: names, labels and buckets. Does not own: when things are counted (``proxy.py``). The model
label holds only InferenceModels that exist; those that are gone are dropped at the next scrape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from terrace.api.names import Key
    from terrace.gateway.registry import Registry

UNKNOWN = ""
"""The model label of requests that named no existing model."""
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class WatchAges(Protocol):
    """What the watcher tells of itself."""

    def ages(self) -> Mapping[str, float]:
        """Seconds since the API server was last heard of, by plural kind."""
        ...


class Metrics:
    """Counters of the requests and a view of the registry at the time of the scrape."""

    def __init__(self, registry: Registry, watch: WatchAges) -> None:
        self._models, self._watch = registry, watch
        self._prometheus = CollectorRegistry(auto_describe=False)
        self._seen: set[tuple[str, str]] = set()
        own = self._prometheus
        model = ["model"]
        self._requests = Counter(
            "terrace_gateway_requests",
            "Requests that ended, by model and status; 499 is a client that left.",
            ["model", "code"],
            registry=own,
        )
        self._in_flight = Gauge(
            "terrace_gateway_requests_in_flight", "Requests under way.", model, registry=own
        )
        self._first_byte = Histogram(
            "terrace_gateway_time_to_first_byte_seconds",
            "From the request's headers to the first byte of the replica's answer.",
            model,
            buckets=_SECONDS,
            registry=own,
        )
        self._duration = Histogram(
            "terrace_gateway_request_seconds",
            "From the request's headers to the last byte of the answer.",
            model,
            buckets=_SECONDS,
            registry=own,
        )
        self._failures = Counter(
            "terrace_gateway_upstream_failures",
            "Replicas that could not be reached (connect) or died while answering.",
            ["model", "stage"],
            registry=own,
        )
        self._prometheus.register(self)

    def started(self, model: Key) -> None:
        """A request for an existing model begins; call ``ended`` once."""
        self._in_flight.labels(str(model)).inc()

    def ended(self, model: Key | None, code: int, seconds: float) -> None:
        """A request ended; ``model`` is None where none was resolved."""
        label = str(model) if model else UNKNOWN
        self._seen.add((label, str(code)))
        self._requests.labels(label, str(code)).inc()
        if model is not None:
            self._in_flight.labels(label).dec()
            self._duration.labels(label).observe(seconds)

    def first_byte(self, model: Key, seconds: float) -> None:
        """The replica's answer begins."""
        self._first_byte.labels(str(model)).observe(seconds)

    def upstream_failed(self, model: Key, stage: str) -> None:
        """``stage`` is connect, before_first_byte or mid_stream."""
        self._failures.labels(str(model), stage).inc()

    def render(self) -> bytes:
        """The exposition text."""
        self._drop_gone_models()
        return generate_latest(self._prometheus)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Called by the client library at each scrape."""
        endpoints = GaugeMetricFamily(
            "terrace_gateway_endpoints", "Ready replicas.", labels=["model"]
        )
        for model in self._models.models():
            endpoints.add_metric([str(model.key)], len(self._models.endpoints(model.key)))
        yield endpoints
        age = GaugeMetricFamily(
            "terrace_gateway_watch_age_seconds",
            "Seconds since the API server was last heard of; above 120 the view may be stale.",
            labels=["kind"],
        )
        for kind, seconds in self._watch.ages().items():
            age.add_metric([kind], seconds)
        yield age

    def _drop_gone_models(self) -> None:
        known = {str(model.key) for model in self._models.models()} | {UNKNOWN}
        for label, code in [pair for pair in self._seen if pair[0] not in known]:
            self._seen.discard((label, code))
            self._requests.remove_by_labels({"model": label})
            for metric in (self._in_flight, self._first_byte, self._duration, self._failures):
                metric.remove_by_labels({"model": label})
