"""The status of both kinds, as the operator writes it and ``kubectl get -o yaml`` shows it.

Owns: the types of ``status``. Does not own: when what is true (``terrace.controller.status``).
Pure. A status of another version may hold more: unknown fields are ignored here, not refused.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from terrace.api.file_status import (  # noqa: TC001 - pydantic reads annotations at run time
    AdapterStatus,
    DownloadStatus,
    ModelStatus,
    ProjectorStatus,
)
from terrace.api.markers import list_map
from terrace.api.plan_status import PlanStatus  # noqa: TC001 - as above
from terrace.api.values import StatusValue


class ConditionStatus(StatusValue):
    """One question about the object and its answer."""

    type: str = Field(max_length=316)
    """The question: Ready, Reconciling, Stalled, ModelCached, Placed or Available."""
    status: Literal["True", "False", "Unknown"]
    """The answer."""
    reason: str = Field(max_length=1024)
    """The reason in one CamelCase word."""
    message: str = Field(default="", max_length=32768)
    """The reason for people, with numbers and the way out."""
    last_transition_time: str = Field(max_length=64, json_schema_extra={"format": "date-time"})
    """When status last changed."""
    observed_generation: int | None = None
    """metadata.generation that the answer is about."""


class PlacementStatus(StatusValue):
    """Where the model runs."""

    flavor: str
    """The pool's flavor that it got."""
    stateful_set: str
    """The StatefulSet that runs its replicas."""


class PerformanceStatus(StatusValue):
    """What a replica measured."""

    prompt_tokens_per_second: float = 0
    """Prompt tokens read per second."""
    generated_tokens_per_second: float = 0
    """Tokens generated per second."""
    peak_memory_bytes: int | None = None
    """Highest anonymous and shared memory of a replica so far."""


class MeasuredStatus(StatusValue):
    """What a replica took against its plan; plans of this file on such devices count with it."""

    build: str = ""
    """Versions of the runtime and of llama.cpp."""
    image: str
    """Image of the runtime; another one may take other amounts."""
    device_class: str
    """Kind of devices: cpu, or the accelerator and its product."""
    planned_host_bytes: int
    """Anonymous memory that the plan counted, corrections aside."""
    host_bytes: int
    """The most that a replica took of it so far."""
    planned_device_bytes: int = 0
    """What the plan counted on each device, corrections aside."""
    device_bytes: int = 0
    """What a replica took there."""


class TierUseStatus(StatusValue):
    """How one tier of a replica is used."""

    name: Literal["device", "host", "disk"]
    """The tier."""
    limit_bytes: int
    """Most bytes it may hold."""
    used_percent: int
    """Part of them in use, in steps of 5."""
    hit_percent: int
    """Part of all prompt tokens that were found here, in steps of 5."""


class CacheStatus(StatusValue):
    """The prefix cache of a replica, looked at when it becomes ready and every ten minutes."""

    reuse: str = "none"
    """How this model's KV state is kept for reuse: blocks, checkpoints or none."""
    tiers: list[TierUseStatus] = Field(default_factory=list, json_schema_extra=list_map("name"))
    """Its tiers, the hottest first."""


class InferenceModelStatus(StatusValue):
    """What the operator sees and has decided."""

    observed_generation: int | None = None
    """metadata.generation that this status is about."""
    conditions: list[ConditionStatus] = Field(
        default_factory=list, json_schema_extra=list_map("type")
    )
    """Ready sums up; Stalled says what a person has to change."""
    replicas: int | None = None
    """Replicas that exist."""
    ready_replicas: int | None = None
    """Replicas that answer."""
    selector: str | None = None
    """Label selector of the replicas, for the scale subresource."""
    served_names: list[str] = Field(default_factory=list)
    """Names that clients can call this model by."""
    url: str | None = None
    """Base URL of the OpenAI API that serves this model."""
    placement: PlacementStatus | None = None
    """Where the model runs."""
    plan: PlanStatus | None = None
    """The numbers that each replica runs with, and why."""
    model: ModelStatus | None = None
    """Facts of the model file."""
    projector: ProjectorStatus | None = None
    """Facts of the projector."""
    draft: ModelStatus | None = None
    """Facts of the draft model."""
    adapters: list[AdapterStatus] = Field(default_factory=list, json_schema_extra=list_map("name"))
    """The adapters that are fetched."""
    download: DownloadStatus | None = None
    """The running download; absent when none runs."""
    performance: PerformanceStatus | None = None
    """What replicas measured."""
    measured: MeasuredStatus | None = None
    """What a replica took against its plan; plans to come count with it."""
    cache: CacheStatus | None = None
    """The prefix cache of a replica."""


class FlavorStatus(StatusValue):
    """What the cluster has of one flavor."""

    name: str
    """Name of the flavor."""
    nodes: int
    """Ready nodes of it."""
    allocatable_cpu: str
    """CPU of these nodes together."""
    allocatable_memory: str
    """Memory of these nodes together."""
    allocatable_devices: str | None = None
    """Devices of these nodes together, as 16 x nvidia.com/gpu; absent for accelerator cpu."""


class CachedFile(StatusValue):
    """A file in the pool's model cache."""

    digest: str
    """SHA-256 of the file."""
    file_bytes: int
    """Size of the file."""
    unused_since: str | None = Field(
        default=None, max_length=64, json_schema_extra={"format": "date-time"}
    )
    """Since when no model names it; absent while one does."""


class InferencePoolStatus(StatusValue):
    """What the operator sees."""

    observed_generation: int | None = None
    """metadata.generation that this status is about."""
    conditions: list[ConditionStatus] = Field(
        default_factory=list, json_schema_extra=list_map("type")
    )
    """Ready sums up; Stalled says what a person has to change."""
    models: int | None = None
    """InferenceModels that refer to this pool."""
    flavors: list[FlavorStatus] = Field(default_factory=list, json_schema_extra=list_map("name"))
    """What the cluster has of each flavor."""
    files: list[CachedFile] | None = Field(default=None, json_schema_extra=list_map("digest"))
    """Files of the model cache, with modelCache.deleteUnusedAfterSeconds alone: 256 at most, those
    that nobody uses first."""
