"""What all routes share: the engine, the configuration and where the replica stands in its life.

Owns: ServerState, its phases and the report. Does not own: the process (``server``) or requests.
Health and reports read plain attributes and never wait for the engine.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from typing import TYPE_CHECKING, Literal

from terrace_runtime.api.access_log import note, tenant_mark
from terrace_runtime.api.errors import ApiError, unavailable
from terrace_runtime.api.identity import PRIORITIES, IdentityVerifier
from terrace_runtime.api.image_decoder import ImageDecoder
from terrace_runtime.api.memory import MemoryMeter
from terrace_runtime.contract import IDENTITY_HEADER, Capabilities, MemoryReport, RuntimeReport
from terrace_runtime.device_telemetry.metrics import DeviceMetrics
from terrace_runtime.device_telemetry.sampler import DeviceSampler
from terrace_runtime.metrics import Metrics
from terrace_runtime.node.metrics import NodeMetrics
from terrace_runtime.node.report import NodeWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from starlette.requests import Request as HttpRequest

    from terrace_runtime.api.chat_template import Renderer
    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.engine.client import EngineClient
    from terrace_runtime.engine.request import ModelInfo

_VERSION = importlib.metadata.version("terrace")
Phase = Literal["loading", "ready", "draining"]


class ServerState:
    """One per app; phases only go forward."""

    def __init__(
        self,
        engine: EngineClient,
        config: RuntimeConfig,
        registry: CollectorRegistry,
        make_renderer: Callable[[ModelInfo], Renderer],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` is wall time in seconds. Raises ValueError for a trust key that is none."""
        self.engine = engine
        self.config = config
        self.metrics = Metrics(registry)
        self.memory = MemoryMeter()
        self.devices = DeviceSampler()
        registry.register(DeviceMetrics(self.devices))
        self.node = NodeWatch(config)
        registry.register(NodeMetrics(self.node))
        self.phase: Phase = "loading"
        self.created = int(clock())
        self.template_note = ""
        self.images = ImageDecoder()
        self._identities = IdentityVerifier(config.trust_key, clock)
        self._make_renderer = make_renderer
        self._renderer: Renderer | None = None
        self.metrics.watch(self.report, self._kv_usage)

    async def start(self) -> None:
        """Load the model and get ready; raises EngineError."""
        await self.engine.start()
        self.node.loaded(self.memory.sample(), self.engine.info.tier_bytes)
        self._renderer = self._make_renderer(self.engine.info)
        # A template that does not compile leaves /v1/completions usable, so the replica serves.
        self.template_note = await self._renderer.start()
        if self._renderer.is_default:
            self.template_note = "the model has no chat template; ChatML is used"
        if self.phase == "loading":
            self.phase = "ready"

    async def drain(self) -> None:
        """Turn readiness off, let running requests end within the configured time."""
        self.phase = "draining"
        await self.engine.drain(self.config.drain_timeout_s)

    async def close(self) -> None:
        """Stop engine and children; safe to call twice."""
        if self._renderer is not None:
            await self._renderer.close()
        await self.images.close()
        await self.engine.close()

    @property
    def renderer(self) -> Renderer:
        """The chat template; there once the replica is ready."""
        assert self._renderer is not None
        return self._renderer

    @property
    def fingerprint(self) -> str:
        """Same build, same weights, same settings: same ``system_fingerprint``."""
        known = (self.build, self.config.model_digest, self.config.plan_digest)
        return "fp_" + hashlib.sha256("|".join(known).encode()).hexdigest()[:12]

    @property
    def build(self) -> str:
        """Versions of Terrace and of what it runs on."""
        inside = self.engine.info.build if self.phase != "loading" else ""
        return f"terrace-{_VERSION}+{inside}" if inside else f"terrace-{_VERSION}"

    def check_ready(self) -> None:
        """Raise 503 unless requests are taken."""
        if self.engine.error:
            raise unavailable(f"the engine failed: {self.engine.error}", "engine_error")
        if self.phase == "loading":
            raise unavailable("the model is loading", "loading", retry_after_s=5)
        if self.phase == "draining":
            raise unavailable("this replica is shutting down", "draining", retry_after_s=1)

    def check_takes_images(self, where: str) -> None:
        """Raise 400 when the model has no projector; ``where`` is the field of an image."""
        if not self.engine.info.capabilities.takes_images:
            raise ApiError(
                400,
                f"{where}: this model takes no images; its InferenceModel names no spec.projector",
                param=where,
                code="images_not_supported",
            )

    def admit(self, http: HttpRequest, model: str) -> tuple[str, int]:
        """Tenant and priority of a request; raises ApiError 401 or 404 (unknown model)."""
        identity = self._identities.verify(http.headers.get(IDENTITY_HEADER))
        ours = f"{self.config.namespace}/{self.config.model}"
        tenant, priority = "", "interactive"
        if identity is not None:
            tenant, priority = identity.tenant, identity.priority
        if identity.model == ours if identity is not None else model in self.names:
            adapter, mark = self.adapter(model), tenant_mark(tenant)
            note(http.scope, model=ours, adapter=adapter, tenant=mark, priority=priority)
            return tenant, PRIORITIES[priority]
        raise ApiError(
            404,
            f"the model {model[:128]!r} is not served here; "
            f"this replica serves {', '.join(self.names)}",
            param="model",
            code="model_not_found",
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All that a request may write as its ``model``: the model's names and its adapters'."""
        return (*self.config.served_names, *(one.name for one in self.config.adapters))

    def adapter(self, model: str) -> str:
        """The LoRA adapter that a request for ``model`` is computed with; empty: none."""
        return model if any(model == one.name for one in self.config.adapters) else ""

    def report(self) -> RuntimeReport:
        """The answer of /v1/runtime."""
        is_loaded = self.phase != "loading"
        info = self.engine.info if is_loaded else None
        stats = self.engine.stats
        return RuntimeReport(
            build=self.build,
            model=self.config.model,
            model_digest=self.config.model_digest,
            plan_digest=self.config.plan_digest,
            state="failed" if self.engine.error else self.phase,
            context_tokens=info.context_tokens if info else self.config.context_tokens,
            parallel=info.parallel if info else self.config.parallel,
            threads=info.threads if info else self.config.threads,
            memory=MemoryReport(
                weights_bytes=info.weights_bytes if info else None,
                kv_bytes=info.kv_bytes if info else None,
                compute_bytes=info.compute_bytes if info else None,
                projector_bytes=info.projector_bytes if info else None,
                anonymous_peak_bytes=self.memory.peak_bytes or None,
                devices=info.devices if info else (),
            ),
            capabilities=info.capabilities if info else Capabilities(),
            adapters=tuple(one.name for one in self.config.adapters),
            engine=self.engine.report,
            node=self.node.report,
            waiting=stats.waiting,
            running=stats.running,
            prompt_tokens_per_second=_rate(stats.prompt_tokens, stats.prompt_seconds),
            generated_tokens_per_second=_rate(stats.generated_tokens, stats.generated_seconds),
        )

    def _kv_usage(self) -> float:
        stats = self.engine.stats
        return stats.kv_used_tokens / stats.kv_total_tokens if stats.kv_total_tokens else 0.0


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 2) if seconds > 0 else 0.0
