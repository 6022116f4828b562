"""``status.plan`` of a model: the numbers that each replica runs with, for people.

Owns: the types. Does not own: filling them in (``controller/plan_status.py``), the rest of the
status (``status.py``). Pure.
"""

from __future__ import annotations

from pydantic import Field

from terrace.api.values import StatusValue


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
    """Whether conversations have cells of their own (Split), share one pool (Unified), or what is
    better at the time (Auto)."""
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
