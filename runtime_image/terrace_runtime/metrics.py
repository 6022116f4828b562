"""The runtime's Prometheus metrics; names are the contract's, buckets are vLLM's.

Owns: what is counted as it happens, and how it is named. Does not own: when (``api``), or what is
read from the report at each scrape (``report_metrics.py``). Labels are bounded sets: nothing that a
client chooses becomes a label. Cheap per token: plain counters, no label look-up.
"""

from __future__ import annotations

import importlib.metadata
import time
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from terrace_runtime import contract
from terrace_runtime.report_metrics import ReportMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from terrace_runtime.contract import RuntimeReport

_TTFT_BUCKETS: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_ITL_BUCKETS: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
_E2E_BUCKETS: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0,
    40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
MAX_TENANTS: Final = 256
"""Tenants with series of their own."""
_STEP_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_BATCH_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Metrics:
    """All metrics of one replica, registered in ``registry``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped
        self.registry = registry
        self._requests = Counter(
            contract.METRIC_REQUESTS,
            "Requests that ended, by endpoint and outcome (a finish reason or why none began).",
            ["endpoint", "outcome"],
            registry=registry,
        )
        self._prompt = _counter(registry, contract.METRIC_PROMPT_TOKENS, "Prompt tokens read.")
        self._generated = _counter(
            registry, contract.METRIC_GENERATED_TOKENS, "Tokens generated and handed out."
        )
        self._ttft = _histogram(
            registry,
            contract.METRIC_TTFT,
            "Seconds from arrival to the first token.",
            _TTFT_BUCKETS,
        )
        self._itl = _histogram(
            registry, contract.METRIC_ITL, "Seconds between tokens of one answer.", _ITL_BUCKETS
        )
        self._e2e = _histogram(
            registry, contract.METRIC_E2E, "Seconds from arrival to the end.", _E2E_BUCKETS
        )
        self._batch = _histogram(
            registry,
            contract.METRIC_BATCH_TOKENS,
            "Tokens per step, as seen when tokens are handed out.",
            _BATCH_BUCKETS,
        )
        self._step = _histogram(
            registry,
            contract.METRIC_STEP_SECONDS,
            "Seconds per step, seen likewise.",
            _STEP_BUCKETS,
        )
        self._queue = _histogram(
            registry, contract.METRIC_QUEUE_SECONDS, "Seconds until a request began.", _TTFT_BUCKETS
        )
        self._tenant_requests = Counter(
            contract.METRIC_TENANT_REQUESTS,
            "Requests that ended, by tenant (as the gateway signs it) and outcome.",
            ["tenant", "outcome"],
            registry=registry,
        )
        self._tenant_tokens = Counter(
            contract.METRIC_TENANT_TOKENS,
            "Tokens by tenant, and whether they were read or generated.",
            ["tenant", "kind"],
            registry=registry,
        )
        _process(registry)
        self._tenants: set[str] = set()
        self._last_step = 0

    def watch(self, report: Callable[[], RuntimeReport], kv_usage: Callable[[], float]) -> None:
        """Read the gauges from these at each scrape."""
        self.registry.register(ReportMetrics(report, kv_usage))

    def count_request(self, endpoint: str, outcome: str) -> None:
        """One request ended; both words come from closed sets of ours."""
        self._requests.labels(endpoint, outcome).inc()

    def see_step(self, steps: int, batch_tokens: int, step_seconds: float) -> None:
        """Note the engine's latest step unless it was noted already."""
        if steps != self._last_step:
            self._last_step = steps
            self._batch.observe(batch_tokens)
            self._step.observe(step_seconds)

    def meter(self, arrived: float) -> TokenMeter:
        """A meter for one generation that arrived at ``arrived`` (monotonic seconds)."""
        return TokenMeter(self._prompt, self._generated, self._ttft, self._itl, self._e2e, arrived)

    def see_queue(self, seconds: float) -> None:
        """A request began after so long a wait."""
        self._queue.observe(seconds)

    def count_tenant(self, tenant: str, outcome: str, prompt: int, generated: int) -> None:
        """A request of ``tenant`` ended; beyond MAX_TENANTS they count as ``other``."""
        if tenant not in self._tenants:
            if len(self._tenants) >= MAX_TENANTS:
                tenant = "other"
            self._tenants.add(tenant)
        self._tenant_requests.labels(tenant, outcome).inc()
        self._tenant_tokens.labels(tenant, "prompt").inc(prompt)
        self._tenant_tokens.labels(tenant, "generated").inc(generated)


class TokenMeter:
    """Times one generation; three attribute writes and two observations per output."""

    __slots__ = ("_arrived", "_e2e", "_generated", "_itl", "_last", "_prompt", "_ttft")

    def __init__(
        self,
        prompt: Counter,
        generated: Counter,
        ttft: Histogram,
        itl: Histogram,
        e2e: Histogram,
        arrived: float,
    ) -> None:
        self._prompt, self._generated = prompt, generated
        self._ttft, self._itl, self._e2e = ttft, itl, e2e
        self._arrived = arrived
        self._last = 0.0

    def tokens(self, num_tokens: int, num_prompt_tokens: int) -> None:
        """``num_tokens`` more were generated; the first call also counts the prompt."""
        now = time.monotonic()
        if self._last:
            if num_tokens:
                self._itl.observe((now - self._last) / num_tokens)
        else:
            self._prompt.inc(num_prompt_tokens)
            self._ttft.observe(now - self._arrived)
        self._last = now
        self._generated.inc(num_tokens)

    def end(self) -> None:
        """The generation is over, in whichever way."""
        self._e2e.observe(time.monotonic() - self._arrived)


def _process(registry: CollectorRegistry) -> None:
    """Of the server's own process; the engine's memory is METRIC_MEMORY."""
    build = Gauge(
        "terrace_runtime_build_info",
        "1; version of the runtime.",
        ["version"],
        registry=registry,
    )
    build.labels(importlib.metadata.version("terrace")).set(1)
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)


def _counter(registry: CollectorRegistry, name: str, text: str) -> Counter:
    return Counter(name, text, registry=registry)


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...]
) -> Histogram:
    return Histogram(name, text, registry=registry, buckets=buckets)
