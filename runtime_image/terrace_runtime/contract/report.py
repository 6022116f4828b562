"""What a replica tells: who asks it (Identity) and how it is (RuntimeReport).

Owns: the signed claims of a request and the answer of ``GET /v1/runtime``. Does not own: signing
(``terrace.gateway``), measuring (``engine``). Next: ``terrace.controller.report`` reads it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from terrace_runtime.contract.node import NodeReport
from terrace_runtime.contract.values import Value


class Identity(Value):
    """Claims of IDENTITY_HEADER: who asks, how urgent, and for which model."""

    tenant: str = Field(default="", max_length=128)
    priority: Literal["interactive", "batch"] = "interactive"
    model: str = Field(max_length=128)
    """``namespace/name`` of the InferenceModel that the gateway chose."""
    exp: int
    """Seconds since the epoch after which the header is void."""


class DeviceMemory(Value):
    """What lies on one device, as llama.cpp told it while loading; the host is one too."""

    name: str = Field(max_length=64)
    """``CUDA0``, ``Vulkan0``; ``CPU`` is host memory."""
    description: str = Field(default="", max_length=128)
    total_bytes: int | None = None
    """As its driver says; ``None`` for the host, whose limit is the pod's."""
    free_bytes: int | None = None
    """After loading."""
    weights_bytes: int = 0
    kv_bytes: int = 0
    compute_bytes: int = 0


class MemoryReport(Value):
    """Bytes; ``None`` where the backend does not tell."""

    weights_bytes: int | None = None
    kv_bytes: int | None = None
    compute_bytes: int | None = None
    projector_bytes: int | None = None
    """Weights and largest graph of the projector, counted above too; 0: there is none."""
    anonymous_peak_bytes: int | None = None
    """Highest RssAnon + RssShmem of the pod's processes so far."""
    devices: tuple[DeviceMemory, ...] = Field(default=(), max_length=32)


class TierReport(Value):
    """One tier of the KV store; counters are since start."""

    name: Literal["device", "host", "disk"]
    used_bytes: int = 0
    limit_bytes: int = 0
    blocks: int = 0
    hits: int = 0
    """Blocks found here when a request looked for its prefix."""
    hit_tokens: int = 0
    spills: int = 0
    """Blocks that came here from the tier above."""
    evictions: int = 0
    """Blocks that left for want of room."""


class CacheReport(Value):
    """The prefix cache and its tiers."""

    reuse: Literal["blocks", "checkpoints", "none"] = "none"
    block_tokens: int = 0
    queried_tokens: int = 0
    """Prompt tokens looked up."""
    misses: int = 0
    """Blocks looked for and found in no tier."""
    restores: int = 0
    """Requests that began with restored blocks."""
    parks: int = 0
    """Sequences set aside for want of room or for a more urgent one."""
    layout: Literal["split", "unified"] = "split"
    """Of the KV cells now; kvLayout Auto changes it."""
    layout_changes: int = 0
    rejected_blocks: int = 0
    """Blocks on disk that were torn, corrupt, foreign or gone."""
    spill_failures: int = 0
    """Writes that the disk refused."""
    restore_bytes_per_second: float = 0.0
    disk_read_bytes_per_second: float = 0.0
    tiers: tuple[TierReport, ...] = ()


class SequenceReport(Value):
    """One running sequence; no text, no tenant's name."""

    slot: int
    prompt_tokens: int
    computed_tokens: int
    generated_tokens: int
    cached_tokens: int
    age_s: float
    adapter: str = ""


class ImageReport(Value):
    """Pieces of images that became embedding rows, since start."""

    encoded: int = 0
    """Pieces that the projector encoded."""
    kept: int = 0
    """Pieces whose rows were still kept from an earlier request."""
    reused: int = 0
    """Pieces whose KV cells were found, so that no rows were needed."""
    failed: int = 0
    """Pieces that could not be encoded."""
    rows_bytes: int = 0
    """Bytes of the rows that are kept now, at most IMAGE_ROWS_BYTES."""
    encode_seconds: float = 0.0
    """All encodings together."""
    encode_counts: tuple[int, ...] = Field(default=(), max_length=32)
    """Encodings by how long they took: up to each of IMAGE_ENCODE_BUCKETS, not cumulative."""


class SpeculationReport(Value):
    """What guessing ahead brought since start."""

    mode: Literal["off", "ngram", "draft"] = "off"
    is_active: bool = False
    reason: str = ""
    """Why it is off, where it could be on."""
    drafted_tokens: int = 0
    accepted_tokens: int = 0


class EngineReport(Value):
    """What only the engine knows; at most a second old."""

    cache: CacheReport = CacheReport()
    speculation: SpeculationReport = SpeculationReport()
    images: ImageReport = ImageReport()
    sequences: tuple[SequenceReport, ...] = Field(default=(), max_length=256)
    step_seconds: dict[str, float] = Field(default_factory=dict)
    """Measured seconds of a step by its number of decoding sequences."""


class Capabilities(Value):
    """What the loaded model can do in this build, probed when it was loaded."""

    model_class: Literal["decoder", "encoder", "encoder-decoder"] = "decoder"
    reuse: Literal["blocks", "checkpoints", "none"] = "none"
    """How KV state is kept for reuse."""
    can_cut: bool = False
    """A sequence's last tokens can be dropped alone."""
    can_share_cells: bool = False
    """A prefix can be shared without copying (unified KV), at start; see ``cache.layout``."""
    can_shift: bool = False
    can_embed: bool = False
    pooling: str = ""
    has_devices: bool = False
    """The build found a device other than the CPU."""
    device_candidates: int = 0
    """Likeliest tokens that the device finds of each row, where requests need no more; 0: none."""
    takes_images: bool = False
    """Prompts may hold images: it has a projector."""


class RuntimeReport(Value):
    """``GET /v1/runtime``: read when a replica becomes Ready and slowly after."""

    version: Literal["v1"] = "v1"
    build: str
    """Terrace and llama.cpp versions, e.g. ``terrace-0.1.0+llama.cpp-0c1e570``."""
    model: str
    model_digest: str
    plan_digest: str
    state: Literal["loading", "ready", "draining", "failed"]
    context_tokens: int
    parallel: int
    threads: int
    memory: MemoryReport = MemoryReport()
    waiting: int = 0
    running: int = 0
    prompt_tokens_per_second: float = 0.0
    """Measured since start; 0: nothing measured yet."""
    generated_tokens_per_second: float = 0.0
    capabilities: Capabilities = Capabilities()
    adapters: tuple[str, ...] = Field(default=(), max_length=16)
    """Names of the LoRA adapters that requests may ask for."""
    engine: EngineReport = EngineReport()
    node: NodeReport = NodeReport()
    """What the container may use of its node, and uses."""
