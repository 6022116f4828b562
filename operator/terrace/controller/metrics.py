"""What the operator counts, for Prometheus.

Owns: every metric name and label of the operator. Does not own: serving them (``probes.py``).
Labels hold kinds, verbs and codes only; names of users' objects would grow without bound.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from terrace import __version__

_FAST = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """One registry per process (or per test)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.queue_depth = self._gauge("queue_depth", "Items ready to be reconciled.")
        self.queue_in_flight = self._gauge("queue_in_flight", "Items being reconciled.")
        self.queue_oldest = self._gauge("queue_oldest_seconds", "Wait of the first ready item.")
        self.queue_adds = self._gauge("queue_adds", "Items added to the queue since the start.")
        self.queue_retries = self._gauge("queue_retries", "Items queued again after a failure.")
        self._add_work()
        self.cache_objects = self._gauge("cache_objects", "Objects in the cache.", "resource")
        self.cache_event_age = self._gauge(
            "cache_event_age_seconds", "Time since the last event of a kind.", "resource"
        )
        self.cache_list_age = self._gauge(
            "cache_list_age_seconds", "Time since the last full list of a kind.", "resource"
        )
        self.missed_deletions = Counter(
            "terrace_operator_missed_deletions",
            "Objects that vanished without an event, found by a full list.",
            ("resource",),
            registry=self.registry,
        )
        self.leader = self._gauge("leader", "1 while this process is the leader.")
        self.loop_lag = Histogram(
            "terrace_operator_loop_lag_seconds",
            "How late the event loop woke up, asked twenty times a second.",
            buckets=_FAST,
            registry=self.registry,
        )
        build = self._gauge("build_info", "Version of the operator.", "version")
        build.labels(__version__).set(1)

    def _add_work(self) -> None:
        self.reconciles = Counter(
            "terrace_operator_reconciles",
            "Reconciles that ended.",
            ("kind", "outcome"),
            registry=self.registry,
        )
        self.plans = Counter(
            "terrace_operator_plans",
            "Plans that were worked out; a reconcile whose inputs are unchanged needs none.",
            registry=self.registry,
        )
        self.reconcile_seconds = Histogram(
            "terrace_operator_reconcile_seconds",
            "Duration of a reconcile.",
            ("kind",),
            buckets=_FAST,
            registry=self.registry,
        )
        self.calls = Counter(
            "terrace_operator_api_calls",
            "Calls to the API server.",
            ("verb", "resource", "code"),
            registry=self.registry,
        )
        self.call_seconds = Histogram(
            "terrace_operator_api_call_seconds",
            "Duration of a call to the API server.",
            ("verb",),
            buckets=_FAST,
            registry=self.registry,
        )

    def observe_call(self, verb: str, resource: str, code: str, seconds: float) -> None:
        """Count one call; ``code`` is the HTTP status or ``none``."""
        self.calls.labels(verb, resource, code).inc()
        self.call_seconds.labels(verb).observe(seconds)

    def observe_reconcile(self, kind: str, outcome: str, seconds: float) -> None:
        """Count one reconcile by outcome: success, requeue, conflict, error."""
        self.reconciles.labels(kind, outcome).inc()
        self.reconcile_seconds.labels(kind).observe(seconds)

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"terrace_operator_{name}", text, labels, registry=self.registry)
