"""What the operator counts, for Prometheus.

Owns: every metric name and label of the process, its queue and its calls. Does not own: what is
told of models (``object_metrics.py``), serving them (``probes.py``). Labels here hold kinds, verbs
and codes only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from terrace import __version__
from terrace.controller.object_metrics import ObjectMetrics

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FAST = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class QueueTotals(Collector):
    """What the queue itself has counted since the start."""

    adds = 0
    retries = 0

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One scrape."""
        yield CounterMetricFamily(
            "terrace_operator_queue_adds", "Items added to the queue.", self.adds
        )
        yield CounterMetricFamily(
            "terrace_operator_queue_retries", "Items queued again after a failure.", self.retries
        )

    def describe(self) -> Iterable[CounterMetricFamily]:
        """Nothing is read at registration."""
        return []


class Metrics:
    """One registry per process (or per test)."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped
        self.registry = CollectorRegistry()
        self.objects = ObjectMetrics()
        self.queue_totals = QueueTotals()
        self.registry.register(self.objects)
        self.registry.register(self.queue_totals)
        self.queue_depth = self._gauge("queue_depth", "Items ready to be reconciled.")
        self.queue_in_flight = self._gauge("queue_in_flight", "Items being reconciled.")
        self.queue_oldest = self._gauge("queue_oldest_seconds", "Wait of the first ready item.")
        self._add_work()
        self._add_view()
        self.leader = self._gauge("leader", "1 while this process is the leader.")
        self.loop_lag = Histogram(
            "terrace_operator_loop_lag_seconds",
            "How late the event loop woke up, asked twenty times a second.",
            buckets=_FAST,
            registry=self.registry,
        )
        build = self._gauge("build_info", "1; version of the operator.", "version")
        build.labels(__version__).set(1)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def _add_work(self) -> None:
        self.reconciles = self._counter(
            "reconciles",
            "Reconciles that ended; outcome is success, conflict, unavailable or error.",
            "kind",
            "outcome",
        )
        self.plans = self._counter(
            "plans",
            "Plans that were worked out; a reconcile whose inputs are unchanged needs none.",
        )
        self.reconcile_seconds = Histogram(
            "terrace_operator_reconcile_seconds",
            "Duration of a reconcile.",
            ("kind",),
            buckets=_FAST,
            registry=self.registry,
        )
        self.calls = self._counter(
            "api_calls", "Calls to the API server.", "verb", "resource", "code"
        )
        self.call_seconds = Histogram(
            "terrace_operator_api_call_seconds",
            "Duration of a call to the API server.",
            ("verb",),
            buckets=_FAST,
            registry=self.registry,
        )

    def _add_view(self) -> None:
        self.cache_objects = self._gauge("cache_objects", "Objects in the cache.", "resource")
        self.cache_event_age = self._gauge(
            "cache_event_age_seconds", "Time since the last event of a kind.", "resource"
        )
        self.cache_list_age = self._gauge(
            "cache_list_age_seconds", "Time since the last full list of a kind.", "resource"
        )
        self.watch_events = self._counter("watch_events", "Events of the watches.", "resource")
        self.full_lists = self._counter("full_lists", "Full lists that succeeded.", "resource")
        self.missed_deletions = self._counter(
            "missed_deletions",
            "Objects that vanished without an event, found by a full list.",
            "resource",
        )

    def observe_call(self, verb: str, resource: str, code: str, seconds: float) -> None:
        """Count one call; ``code`` is the HTTP status or ``none``."""
        self.calls.labels(verb, resource, code).inc()
        self.call_seconds.labels(verb).observe(seconds)

    def observe_reconcile(self, kind: str, outcome: str, seconds: float) -> None:
        """Count one reconcile by outcome: success, conflict, unavailable, error."""
        self.reconciles.labels(kind, outcome).inc()
        self.reconcile_seconds.labels(kind).observe(seconds)

    def render(self) -> bytes:
        """Everything in Prometheus' text format; safe in a thread beside the loop's."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"terrace_operator_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"terrace_operator_{name}", text, labels, registry=self.registry)
