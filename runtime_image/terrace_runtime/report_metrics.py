"""Metrics that are read when they are asked for: queue, KV tiers, memory, speculation.

Owns: the translation of a RuntimeReport into Prometheus families, our own names and those of the
inference gateway's model-server protocol (``vllm:``), so that gateways and dashboards made for
those work unchanged. Does not own: counting (``metrics.py``, ``engine``).
"""

from __future__ import annotations

import time
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from terrace_runtime import contract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from terrace_runtime.contract import CacheReport, ImageReport, RuntimeReport

    Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily

_TIER_GAUGES = (
    (contract.METRIC_TIER_USED, "Bytes of KV blocks in a tier.", "used_bytes"),
    (contract.METRIC_TIER_LIMIT, "Bytes that a tier may hold.", "limit_bytes"),
    (contract.METRIC_TIER_BLOCKS, "KV blocks in a tier.", "blocks"),
)
_TIER_COUNTERS = (
    (contract.METRIC_TIER_HITS, "Prefix look-ups answered from a tier, in blocks.", "hits"),
    (contract.METRIC_TIER_HIT_TOKENS, "The same in tokens.", "hit_tokens"),
    (contract.METRIC_TIER_SPILLS, "Blocks that came from the tier above.", "spills"),
    (contract.METRIC_TIER_EVICTIONS, "Blocks that left for want of room.", "evictions"),
)
_COUNTERS = (
    (contract.METRIC_KV_MISSES, "Blocks looked for and found in no tier.", "misses"),
    (contract.METRIC_KV_QUERIED, "Prompt tokens looked up in the tiers.", "queried_tokens"),
    (contract.METRIC_KV_RESTORES, "Requests that began with restored blocks.", "restores"),
    (contract.METRIC_KV_PARKS, "Sequences set aside for room or a more urgent one.", "parks"),
    (contract.METRIC_KV_LAYOUTS, "Changes between split and unified KV.", "layout_changes"),
    (contract.METRIC_KV_REJECTED, "Blocks on disk that were not usable.", "rejected_blocks"),
    (contract.METRIC_KV_FAILURES, "Writes that the disk refused.", "spill_failures"),
)


class ReportMetrics(Collector):
    """Numbers of the report as metrics."""

    def __init__(self, report: Callable[[], RuntimeReport], usage: Callable[[], float]) -> None:
        """``usage``: share of KV cells in use, 0 to 1."""
        self._report = report
        self._usage = usage

    def collect(self) -> Iterable[Family]:
        """One scrape."""
        report, usage = self._report(), self._usage()
        yield GaugeMetricFamily(contract.METRIC_QUEUE, "Requests that wait.", report.waiting)
        yield GaugeMetricFamily(contract.METRIC_RUNNING, "Requests that run.", report.running)
        yield GaugeMetricFamily(
            contract.METRIC_KV_USAGE, "Share of KV cells in use, 0 to 1.", usage
        )
        yield from _cache(report.engine.cache)
        yield from _model(report)
        guessed = report.engine.speculation
        yield CounterMetricFamily(
            contract.METRIC_DRAFTED, "Tokens guessed ahead.", guessed.drafted_tokens
        )
        yield CounterMetricFamily(
            contract.METRIC_ACCEPTED, "Guesses that were right.", guessed.accepted_tokens
        )
        if report.capabilities.takes_images:
            yield from _images(report.engine.images)
        yield from _gateway_names(report, usage)

    def describe(self) -> Iterable[Family]:
        """Nothing is read at registration."""
        return []


def _cache(cache: CacheReport) -> Iterable[Family]:
    for name, text, field in _TIER_GAUGES:
        gauge = GaugeMetricFamily(name, text, labels=["tier"])
        for tier in cache.tiers:
            gauge.add_metric([tier.name], getattr(tier, field))
        yield gauge
    for name, text, field in _TIER_COUNTERS:
        counter = CounterMetricFamily(name, text, labels=["tier"])
        for tier in cache.tiers:
            counter.add_metric([tier.name], getattr(tier, field))
        yield counter
    for name, text, field in _COUNTERS:
        yield CounterMetricFamily(name, text, getattr(cache, field))


def _images(images: ImageReport) -> Iterable[Family]:
    pieces = CounterMetricFamily(
        contract.METRIC_IMAGES,
        "Pieces of images in prompts, by what became of them.",
        labels=["outcome"],
    )
    for outcome in ("encoded", "kept", "reused", "failed"):
        pieces.add_metric([outcome], getattr(images, outcome))
    yield pieces
    ends = (*map(str, contract.IMAGE_ENCODE_BUCKETS), "+Inf")
    counts = images.encode_counts or (0,) * len(ends)
    yield HistogramMetricFamily(
        contract.METRIC_IMAGE_ENCODE,
        "Seconds of encoding one piece of an image.",
        buckets=list(zip(ends, accumulate(counts), strict=True)),
        sum_value=images.encode_seconds,
    )


def _model(report: RuntimeReport) -> Iterable[Family]:
    info = GaugeMetricFamily(
        contract.METRIC_MODEL_INFO,
        "1 for the loaded model.",
        labels=["model", "build", "model_class", "reuse"],
    )
    found = report.capabilities
    info.add_metric([report.model, report.build, found.model_class, found.reuse], 1)
    yield info
    memory = GaugeMetricFamily(
        contract.METRIC_MEMORY, "Bytes of memory by what they are for.", labels=["kind"]
    )
    for kind in ("weights", "kv", "compute", "anonymous_peak"):
        held = getattr(report.memory, f"{kind}_bytes")
        if held is not None:
            memory.add_metric([kind], held)
    yield memory


def _gateway_names(report: RuntimeReport, usage: float) -> Iterable[Family]:
    """The inference gateway's model-server protocol."""
    for name, text, value in (
        ("vllm:num_requests_waiting", "Requests that wait.", report.waiting),
        ("vllm:num_requests_running", "Requests that run.", report.running),
        ("vllm:kv_cache_usage_perc", "Share of KV cells in use, 0 to 1.", usage),
    ):
        gauge = GaugeMetricFamily(name, text, labels=["model_name"])
        gauge.add_metric([report.model], value)
        yield gauge
    block_tokens = report.engine.cache.block_tokens
    if block_tokens:
        cells = report.context_tokens * report.parallel
        config = GaugeMetricFamily(
            "vllm:cache_config_info",
            "Tokens of a block and blocks on the device.",
            labels=["block_size", "num_gpu_blocks"],
        )
        config.add_metric([str(block_tokens), str(cells // block_tokens)], 1)
        yield config
    if report.adapters:
        lora = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "When this was, in seconds since the epoch.",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        running = ",".join(sorted({one.adapter for one in report.engine.sequences if one.adapter}))
        lora.add_metric([str(len(report.adapters)), running, ""], time.time())
        yield lora
