"""What the gateway knows and holds at the moment of a scrape, as Prometheus families.

Owns: names and labels of what is read, not counted. Does not own: counting (``metrics.py``).
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from terrace.gateway.limits import Admission
    from terrace.gateway.registry import Registry

    Family = CounterMetricFamily | GaugeMetricFamily

MAX_MODELS: Final = 1000
"""Models with series of their own."""


class Watch(Protocol):
    """What the watcher tells of itself."""

    def ages(self) -> Mapping[str, float]:
        """Seconds since the API server was last heard of, by plural kind."""
        ...

    def lists(self) -> Mapping[str, int]:
        """Full lists so far, by plural kind."""
        ...


class ViewMetrics(Collector):
    """A view of registry, watch and admission."""

    def __init__(self, registry: Registry, watch: Watch, admission: Admission) -> None:
        self._models, self._watch, self._admission = registry, watch, admission

    def collect(self) -> Iterator[Family]:
        """One scrape."""
        endpoints = _gauge("endpoints", "Ready replicas.", "model")
        for model in islice(self._models.models(), MAX_MODELS):
            endpoints.add_metric([str(model.key)], len(self._models.endpoints(model.key)))
        yield endpoints
        age = _gauge(
            "watch_age_seconds",
            "Seconds since the API server was last heard of; above 120 the view may be stale.",
            "kind",
        )
        for kind, seconds in self._watch.ages().items():
            age.add_metric([kind], seconds)
        yield age
        lists = CounterMetricFamily(
            "terrace_gateway_watch_lists",
            "Full lists; more than one of a kind and scope follow a gap in its watch.",
            labels=["kind"],
        )
        for kind, count in self._watch.lists().items():
            lists.add_metric([kind], count)
        yield lists
        yield from self._admitted()

    def describe(self) -> Iterable[Family]:
        """Nothing is read at registration."""
        return []

    def _admitted(self) -> Iterator[Family]:
        admission = self._admission
        for name, text, value in (
            ("admitted_requests", "Requests admitted and not over.", admission.requests),
            (
                "admitted_requests_limit",
                "Requests admitted at once; the next one gets 429.",
                admission.limits.max_requests,
            ),
            ("held_body_bytes", "Bytes of bodies not sent on yet.", admission.held_bytes),
            (
                "held_body_limit_bytes",
                "Bytes of such bodies at once; more get 429.",
                admission.limits.max_held_bytes,
            ),
        ):
            family = _gauge(name, text)
            family.add_metric([], value)
            yield family


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"terrace_gateway_{name}", text, labels=labels)
