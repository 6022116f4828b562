"""The node section as Prometheus families; what the kernel does not tell has no series.

Owns: names and labels. Does not own: looking (``report.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from terrace_runtime import contract

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace_runtime.contract import NodeReport
    from terrace_runtime.node.report import NodeWatch

    Family = GaugeMetricFamily | CounterMetricFamily

_MEMORY_KINDS = ("limit", "high", "used", "working_set", "peak")


class NodeMetrics(Collector):
    """The last look of a NodeWatch."""

    def __init__(self, watch: NodeWatch) -> None:
        self._watch = watch

    def collect(self) -> Iterable[Family]:
        """One scrape."""
        report = self._watch.report
        yield GaugeMetricFamily(
            contract.METRIC_CPUS, "CPUs that the container may run on.", report.cpu.usable
        )
        yield from _told(report)
        yield _memory(report)
        yield from _pressure(report)

    def describe(self) -> Iterable[Family]:
        """Nothing is read at registration."""
        return []


def _told(report: NodeReport) -> Iterable[Family]:
    cpu, memory = report.cpu, report.memory
    if cpu.quota is not None:
        text = "CPUs that all threads together may keep busy."
        yield GaugeMetricFamily(contract.METRIC_CPU_QUOTA, text, cpu.quota)
    for name, text, value in (
        (contract.METRIC_CPU_PERIODS, "Enforcement periods of the CPU quota.", cpu.periods),
        (
            contract.METRIC_CPU_THROTTLED_PERIODS,
            "Periods in which the container had to stop.",
            cpu.throttled_periods,
        ),
        (
            contract.METRIC_CPU_THROTTLED,
            "Seconds for which its threads were stopped, summed.",
            cpu.throttled_seconds,
        ),
        (
            contract.METRIC_OOM_KILLS,
            "Processes of the container that the kernel killed for memory.",
            memory.oom_kills,
        ),
        (
            contract.METRIC_MEMORY_LIMIT_HITS,
            "How often the kernel took pages back at the memory limit.",
            memory.limit_hits,
        ),
    ):
        if value is not None:
            yield CounterMetricFamily(name, text, value)


def _memory(report: NodeReport) -> Family:
    family = GaugeMetricFamily(
        contract.METRIC_CONTAINER_MEMORY,
        "Bytes of the container's control group, by what they are.",
        labels=["kind"],
    )
    for kind in _MEMORY_KINDS:
        value = getattr(report.memory, f"{kind}_bytes")
        if value is not None:
            family.add_metric([kind], value)
    return family


def _pressure(report: NodeReport) -> Iterable[Family]:
    share = GaugeMetricFamily(
        contract.METRIC_PRESSURE,
        "Share of the last ten seconds in which some or all tasks waited, 0 to 1.",
        labels=["resource", "tasks"],
    )
    total = CounterMetricFamily(
        contract.METRIC_PRESSURE_SECONDS,
        "Seconds in which some or all tasks waited.",
        labels=["resource", "tasks"],
    )
    for one in report.pressure:
        for tasks in ("some", "full"):
            share.add_metric([one.resource, tasks], getattr(one, tasks))
            total.add_metric([one.resource, tasks], getattr(one, f"{tasks}_seconds"))
    yield share
    yield total
