"""The status of both kinds, as the operator writes it and ``kubectl get -o yaml`` shows it.

Owns: the types of ``status``. Does not own: when what is true (``terrace.controller.status``).
Pure. A status of another version may hold more: unknown fields are ignored here, not refused.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from terrace.api.markers import list_map
from terrace.api.values import ApiValue


class StatusValue(ApiValue):
    """camelCase on the wire, frozen; unknown fields are those of a newer operator."""

    model_config = ConfigDict(extra="ignore")


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


class KvTypesStatus(StatusValue):
    """Number formats of the KV cells."""

    key: str
    """Format of keys."""
    value: str
    """Format of values."""


class PlanBytes(StatusValue):
    """Bytes of one replica."""

    weights: int
    """Weights, as they lie in the file."""
    kv: int
    """KV cells of all sequences."""
    compute: int
    """Graph buffers, logits and work space."""
    base: int
    """Programs and libraries."""
    tiers: int = 0
    """Host tier, buffers on the way to and from it, index of the blocks."""


class TiersStatus(StatusValue):
    """The tiers below the KV cells, in bytes; 0 is none."""

    host: int
    """Host tier: KV blocks in memory."""
    disk: int
    """Disk tier: KV blocks on disk."""
    prefetch_window: int
    """Read ahead from disk for requests that wait."""
    volume: str = ""
    """Where the disk tier lies."""


class DeviceBytes(StatusValue):
    """Bytes on all devices of one replica together."""

    weights: int
    """Weights, adapters included."""
    kv: int
    """KV cells of the layers that lie there."""
    compute: int
    """Graph buffers."""


class DevicePlanStatus(StatusValue):
    """What lies on devices, and which devices each replica has."""

    accelerator: str
    """Kind of device."""
    product: str = ""
    """Product, as the nodes' label says."""
    resource: str = ""
    """Extended resource that is requested."""
    count: int
    """Devices of one replica."""
    memory_per_device: int
    """Memory of one device, or of this replica's share of it, in bytes."""
    layers: int
    """Layers on devices; the output head lies with them."""
    layers_on_host: int
    """The first so many layers lie in host memory."""
    expert_layers_on_host: int = 0
    """The first so many layers keep their routed experts in host memory."""
    feed_forward_on_host: bool = False
    """Those layers keep their dense feed-forward weights there, for they have no experts."""
    tensor_split: list[float] = Field(default_factory=list)
    """Layers of each of several devices, the output head counted as one."""
    bytes: DeviceBytes
    """Bytes on all devices together."""


class Requests(StatusValue):
    """What a replica requests."""

    cpu: str
    """CPU request."""
    memory: str
    """Memory request."""


class MemoryLimit(StatusValue):
    """What a replica may take at most."""

    memory: str
    """Memory limit."""


class PendingPlan(StatusValue):
    """A better plan; annotate the model with terrace.dev/take-plan=DIGEST to restart with it."""

    digest: str
    """Digest of the plan that waits."""
    reason: str
    """What is different, in one sentence."""


class PlanStatus(StatusValue):
    """The numbers that each replica runs with, and why."""

    digest: str
    """Digest of the plan; replicas with another one are outdated."""
    context: int
    """Tokens that one conversation may hold."""
    parallel: int
    """Conversations that run at the same time in one replica."""
    threads: int
    """Threads of one replica."""
    batch_tokens: int
    """Most tokens of one step."""
    kv_types: KvTypesStatus
    """Number formats of the KV cells."""
    kv_layout: str = ""
    """Whether conversations have cells of their own (Split) or share one pool (Unified)."""
    kv_block_tokens: int | None = None
    """Tokens of one KV block."""
    weights: str = ""
    """How weights lie: mapped, loaded (read into memory) or paged (never copied)."""
    tiers: TiersStatus | None = None
    """The tiers below the KV cells."""
    bytes: PlanBytes
    """Bytes of one replica in host memory; weights are all of the model's."""
    device: DevicePlanStatus | None = None
    """What lies on devices; absent without."""
    requests: Requests
    """What a replica requests."""
    limits: MemoryLimit
    """What a replica may take at most."""
    reasons: list[str] = Field(default_factory=list)
    """Why the numbers are what they are."""
    pending: PendingPlan | None = None
    """A better plan that waits until somebody asks for it."""


class LayerRunStatus(StatusValue):
    """Consecutive layers of the same sizes."""

    count: int
    """How many layers."""
    weight_bytes: int
    """Bytes of weights per layer."""
    expert_bytes: int = 0
    """Part of them that belongs to routed experts."""
    feed_forward_bytes: int = 0
    """Part of them that belongs to dense feed-forward matrices."""
    kv_heads: int
    """Heads that keep keys and values."""
    key_length: int
    """Values of one key."""
    value_length: int
    """Values of one value."""
    window: int = 0
    """Sliding window in tokens; 0 is full attention."""
    repacked_bytes: int = 0
    """Part of weightBytes that CPU kernels copy into another layout."""
    state_bytes: int = 0
    """Bytes of recurrent state of one conversation."""


class WidthsStatus(StatusValue):
    """Values per token inside a layer."""

    query: int = 0
    """All heads' queries together."""
    expert: int = 0
    """Feed-forward width of a routed expert."""
    mixer: int = 0
    """Of a recurrent layer."""
    carried: int = 0
    """What is carried beside the one vector."""
    gated: bool = True
    """Whether feed-forward blocks have a gate."""


class ModelStatus(StatusValue):
    """Facts of the model file, read from its header."""

    path: str = ""
    """Path of the file in the fetch Job."""
    claim: str = ""
    """The PersistentVolumeClaim it lies on."""
    uri: str = ""
    """Where it came from."""
    version: str = "v1"
    """Version of these facts."""
    digest: str
    """SHA-256 of the file."""
    file_bytes: int
    """Size of the file."""
    architecture: str
    """Architecture, as llama.cpp names it."""
    name: str = ""
    """Name that the file gives itself."""
    quantization: str = ""
    """Weight type that holds most bytes."""
    parameters: int
    """Number of parameters."""
    context_length: int
    """Tokens the model was trained for."""
    embedding_length: int
    """Width of the model."""
    feed_forward_length: int = 0
    """Width of the feed-forward layers."""
    heads: int = 0
    """Attention heads."""
    vocabulary: int
    """Tokens in the vocabulary."""
    layers: list[LayerRunStatus] = Field(default_factory=list)
    """Layers, as runs of equal ones."""
    layers_are_merged: bool = False
    """Whether runs join unlike layers; their sizes are then those of the largest."""
    token_embedding_bytes: int
    """Bytes of the token embedding."""
    output_bytes: int
    """Bytes of the output head and norms."""
    repacked_bytes: int = 0
    """Weight bytes that CPU kernels copy into another layout."""
    chat_template: bool = False
    """Whether the file holds a chat template."""
    pooling: str = ""
    """Pooling of an embedding model."""
    model_class: str = "decoder"
    """What it does: decoder, encoder or encoder-decoder."""
    recurrent_bytes: int = 0
    """Bytes of recurrent state of one conversation."""
    weight_types: list[str] = Field(default_factory=list)
    """Types of all tensors."""
    experts: int = 0
    """Routed experts of a layer."""
    experts_used: int = 0
    """Those that one token goes through."""
    parts: int = 1
    """Files that the model is split into."""
    widths: WidthsStatus = Field(default_factory=WidthsStatus)
    """Values per token inside a layer, which decide the size of a step."""


class AdapterStatus(StatusValue):
    """A fetched LoRA adapter."""

    name: str
    """Name that clients call it by."""
    path: str
    """Path of the file in the fetch Job."""
    claim: str = ""
    """The PersistentVolumeClaim it lies on."""
    digest: str
    """SHA-256 of the file."""
    file_bytes: int
    """Size of the file."""
    uri: str = ""
    """Where it came from."""


class DownloadStatus(StatusValue):
    """The running download."""

    file: str = ""
    """Which file, as "the draft" or "adapter NAME"; empty: the model's own."""
    stage: Literal["download", "verify", "inspect"]
    """What is being done."""
    done_bytes: int
    """Bytes done in this stage."""
    total_bytes: int
    """Bytes of this stage; 0 is unknown."""
    bytes_per_second: int = 0
    """Rate at the moment."""
    seconds_left: int | None = None
    """Estimate of the time left."""
    stalled_since: str | None = Field(
        default=None, max_length=64, json_schema_extra={"format": "date-time"}
    )
    """Since when not a byte has come; absent while it gets on."""
    summary: str = ""
    """All of this in a line."""


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
