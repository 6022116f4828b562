"""Devices as Prometheus families: what is told, and nothing for what is not.

Owns: names and labels. Does not own: looking (``sampler.py``). Without a device there is
``terrace_runtime_devices 0`` and no series about any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from terrace_runtime import contract

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace_runtime.device_telemetry.sampler import DeviceSampler

_GAUGES = (
    (contract.METRIC_DEVICE_USE, "Share of time in which the device ran kernels.", "utilization"),
    (contract.METRIC_DEVICE_USED, "Memory in use, by all its clients.", "memory_used_bytes"),
    (contract.METRIC_DEVICE_TOTAL, "Memory that the device has.", "memory_total_bytes"),
    (contract.METRIC_DEVICE_HEAT, "Temperature of the chip.", "temperature_celsius"),
    (contract.METRIC_DEVICE_POWER, "Power drawn.", "power_watts"),
    (contract.METRIC_DEVICE_POWER_LIMIT, "Most power it may draw.", "power_limit_watts"),
)


class DeviceMetrics(Collector):
    """The last look of a sampler."""

    def __init__(self, sampler: DeviceSampler) -> None:
        self._sampler = sampler

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """One scrape; ``sampler.refresh`` comes before it."""
        samples = self._sampler.samples
        yield GaugeMetricFamily(
            contract.METRIC_DEVICES, "Devices seen; 0: this replica has no device.", len(samples)
        )
        yield CounterMetricFamily(
            contract.METRIC_DEVICE_FAILURES,
            "Looks at devices that failed or took too long.",
            self._sampler.failures,
        )
        labels = ["device", "name", "vendor"]
        for metric, text, field in _GAUGES:
            family = GaugeMetricFamily(metric, text, labels=labels)
            for sample in samples:
                value = getattr(sample, field)
                if value is not None:
                    family.add_metric([sample.id, sample.name, sample.vendor], value)
            if family.samples:
                yield family
        throttled = GaugeMetricFamily(
            contract.METRIC_DEVICE_THROTTLED,
            "1 for each reason why clocks are lowered now.",
            labels=[*labels, "reason"],
        )
        for sample in samples:
            for reason in sample.throttled_by or ():
                throttled.add_metric([sample.id, sample.name, sample.vendor, reason], 1)
        if throttled.samples:
            yield throttled
