"""OffloadPlan: how one replica uses memory and threads, as a value.

Owns: its fields, its digest. Does not own: how the numbers come about (``footprint.py``,
``placement.py``). Pure. Next: ``terrace.controller`` turns it into a RuntimeConfig and resources.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from terrace.api.values import KvType  # noqa: TC001 - pydantic reads annotations at run time
from terrace.planner.tiers import (
    DEFAULT_BLOCK_TOKENS,
    DEFAULT_CHECKPOINT_COUNT,
    DEFAULT_CHECKPOINT_TOKENS,
    Weights,
)

BATCH_TOKENS = 512
UBATCH_TOKENS = 512
PREFILL_TOKENS = 256
"""What every replica gets; ``docs/adr`` of the engine says why."""


_NOTES = {"anonymous_bytes", "corrected_host_bytes", "corrected_device_bytes"}


class KvVolume(BaseModel):
    """The volume of a replica's disk tier."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(ge=0)
    """Size of the claims that are made, or limit of the emptyDir."""
    storage_class: str | None = None
    """Class of the claims that are made; None: the cluster's default."""
    claim: str = ""
    """An existing claim instead, shared by all replicas: a folder each."""
    is_ephemeral: bool = False
    """The node's own disk instead."""


class DevicePlan(BaseModel):
    """What lies on devices, and which devices a replica asks for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    accelerator: str
    """Name of the row of the accelerator table."""
    backend: str
    """llama.cpp's backend: ``cuda``, ``rocm``, ``vulkan`` ..."""
    product: str = ""
    """As the node's label says."""
    resource: str
    """Extended resource that is requested; empty with ``claim_template``."""
    count: int = Field(ge=1)
    claim_template: str = ""
    """ResourceClaimTemplate that brings the devices instead."""
    shares: int = Field(default=1, ge=1)
    """Clients that one device may have; above 1, memory is this share of it."""
    memory_bytes: int = Field(ge=0)
    """Of one device, or of the share."""
    device_layers: int = Field(ge=0)
    """As llama.cpp counts: the last so many, and one more than there are takes the output head."""
    layers: int = 0
    """Layers of the model, without the output head."""
    expert_layers_on_host: int = 0
    """The first so many layers keep their routed experts in host memory."""
    feed_forward_on_host: bool = False
    """Those layers keep their dense feed-forward weights there instead: they have no experts."""
    kv_on_device: bool = True
    tensor_split: tuple[float, ...] = ()
    """Shares of several devices; empty with one."""
    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0
    """Bytes on all devices together."""
    margin_bytes: int = 0
    """Kept free on each device, for its driver and for what is estimated."""
    node_labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Label -> values, of which a replica's node must have one: the numbers hold for no others."""


class OffloadPlan(BaseModel):
    """Every number a replica runs with. A pure function of its inputs, so it carries their digest.

    It is kept as JSON in an annotation and outlives operator versions: a field added later has a
    default that means "as before", so that old plans keep their digest and nothing restarts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal["v1"] = "v1"
    inputs: str = ""
    """``sticky.inputs_digest`` of what it was made from."""
    flavor: str
    context_tokens: int = Field(ge=64)
    """Tokens one sequence may hold."""
    parallel: int = Field(ge=1)
    """Sequences that run at the same time."""
    batch_tokens: int
    """Most tokens of one step."""
    ubatch_tokens: int
    """Most tokens of one graph evaluation."""
    prefill_tokens: int
    """Prompt tokens added to a step in which other sequences decode."""
    threads: int = Field(ge=1)
    kv_key_type: KvType
    kv_value_type: KvType
    kv_unified: bool = False
    """All sequences share one pool of cells."""
    kv_auto: bool = False
    """They do so while most of what runs is shared."""
    weights: Weights = "mapped"
    """How weights lie: mapped; loaded (read into memory); paged (mapped, never copied)."""
    block_tokens: int = DEFAULT_BLOCK_TOKENS
    """Tokens of one KV block."""
    checkpoint_tokens: int = DEFAULT_CHECKPOINT_TOKENS
    """Tokens between two states kept of a model without blocks."""
    checkpoint_count: int = DEFAULT_CHECKPOINT_COUNT
    """Most states kept of it."""
    host_bytes: int = 0
    """Host tier; 0: nothing is kept below the KV cells."""
    disk_bytes: int = 0
    """Disk tier."""
    prefetch_bytes: int = 0
    """Read ahead from disk for requests that wait."""
    volume: KvVolume | None = None
    """Where the disk tier lies; None without one."""
    device: DevicePlan | None = None
    """None: everything lies in host memory."""
    projector_bytes: int = 0
    """Weights of the projector, encoding an image and the images of requests, in host memory."""
    draft_bytes: int = 0
    """Weights, cells and graph of the draft model, in host memory."""
    adapter_bytes: int = 0
    """LoRA adapters."""
    attempt: int = 0
    """How often a plan of this model proved too small and was made anew."""
    weights_bytes: int
    """Weights as they lie in the file."""
    host_weights_bytes: int = 0
    """With devices: those of them whose place is the host. A tied head lies on both sides."""
    repacked_bytes: int = 0
    """Weights in anonymous memory: what CPU kernels copy into another layout, or, loaded, all."""
    kv_bytes: int
    """Cells in host memory and what llama.cpp notes about all of them."""
    compute_bytes: int
    """Graph buffers, logits and work space of the threads, in host memory."""
    base_bytes: int
    """Python, libraries and vocabulary of the replica's processes."""
    tiers_bytes: int = 0
    """The host tier, buffers on the way to and from it, and the index of the tiers."""
    anonymous_bytes: int = 0
    """Bound of the anonymous and shared memory of a replica; 0: an older plan. Not part of the
    digest."""
    corrected_host_bytes: int = 0
    corrected_device_bytes: int = 0
    """What was added because replicas took more than planned. Not part of the digest, for the
    numbers that it changed are."""
    memory_request_bytes: int
    memory_limit_bytes: int
    cpu_millis: int
    preferred_nodes: tuple[str, ...] = ()
    """Nodes that replicas would best go to, the best first. Not part of the digest."""
    reasons: tuple[str, ...] = ()
    """Why the numbers are what they are, one sentence each. Not part of the digest."""

    @property
    def digest(self) -> str:
        """64 hex digits over all that replicas run with; equal plans run equal replicas."""
        told = {"reasons", "preferred_nodes", *_NOTES}
        body = self.model_dump_json(exclude=told, exclude_defaults=True)
        return sha256(body.encode()).hexdigest()
