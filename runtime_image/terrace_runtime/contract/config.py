"""Everything a replica is told, written by the operator and read once at start.

Owns: RuntimeConfig, its parts and their bounds. Does not own: what the settings do (``engine``,
``kv``, ``backend``). Next: ``report.py`` is what the replica tells back.
"""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from terrace_runtime.contract.values import Digest, KvType, Value


class SamplingDefaults(Value):
    """Used for every field that a request leaves out."""

    temperature: float = Field(default=0.8, ge=0, le=5)
    """0 always takes the likeliest token."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Nucleus sampling; 1 is off."""
    top_k: int = Field(default=40, ge=0, le=10_000)
    """Take among the k likeliest tokens; 0 is off."""
    min_p: float = Field(default=0.05, ge=0, le=1)
    """Drop tokens less likely than this share of the likeliest."""
    repeat_penalty: float = Field(default=1.0, ge=0.1, le=10)
    """Above 1 makes repetition less likely."""


class Speculation(Value):
    """Tokens guessed ahead and verified in the shared batch; the output is the same without."""

    mode: Literal["off", "ngram", "draft"] = "off"
    """ngram: what followed the same words before. draft: a smaller model guesses."""
    max_tokens: int = Field(default=4, ge=1, le=16)
    """Most tokens guessed ahead per sequence and step."""
    draft_path: str = Field(default="", max_length=1024)
    """GGUF of the draft model, for mode ``draft``; its vocabulary must be the model's."""


class Adapter(Value):
    """A LoRA adapter, asked for by its name in the request's ``model``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=128)
    """Name that clients call it by."""
    path: str = Field(max_length=1024)
    """Absolute container path of the GGUF."""
    digest: Digest
    """SHA-256 of the file."""
    scale: float = Field(default=1.0, ge=-10, le=10)
    """How strongly it counts."""


class KvTiers(Value):
    """Where KV blocks go when they leave the device, and how much of each place they get."""

    block_tokens: int = Field(default=32, ge=8, le=1024)
    """Tokens of one KV block."""
    host_bytes: int = Field(default=0, ge=0)
    """Host tier: spillThreshold. 0: no tier below the device."""
    disk_bytes: int = Field(default=0, ge=0)
    """Disk tier: maxDisk. 0: none."""
    disk_path: str = Field(default="", max_length=1024)
    """Folder of the disk tier as a container path; needed with ``disk_bytes``."""
    prefetch_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """Bytes staged disk -> host ahead of the batch planner: prefetchWindow."""
    pinned_bytes: int = Field(default=0, ge=0)
    """Most bytes of the host tier that pinned prefixes may hold."""
    isolation: Literal["tenant", "shared"] = "tenant"
    """``tenant``: no block crosses tenants."""
    checkpoint_tokens: int = Field(default=512, ge=16, le=1_048_576)
    """Models whose cells cannot be cut into blocks: tokens between two checkpoints."""
    checkpoint_count: int = Field(default=32, ge=0, le=4096)
    """Most checkpoints kept for them; their bytes count as host tier."""


class Offload(Value):
    """Which bytes of the model lie where. What this build cannot do is refused by name."""

    device_layers: int = Field(default=-1, ge=-1, le=4096)
    """Layers on the device; -1: all, as many as the build has a device for."""
    expert_layers_on_host: int = Field(default=0, ge=0, le=4096)
    """The first so many layers keep their routed experts in host memory."""
    tensor_overrides: tuple[tuple[str, str], ...] = Field(default=(), max_length=32)
    """(pattern of tensor names, buffer type such as ``CPU``): as llama.cpp's --override-tensor."""
    tensor_split: tuple[float, ...] = Field(default=(), max_length=16)
    """Shares of several devices."""
    kv_on_device: bool = True
    """False: the cells of layers on devices lie on the host, and attention is computed there."""
    weights: Literal["mapped", "loaded", "locked", "paged"] = "mapped"
    """mapped: mmap, repacked where kernels want it. loaded: read into memory. locked: mapped and
    mlocked. paged: mapped, never repacked, so that weights may exceed the memory limit."""


AUTO_UNIFIED_UBATCH: Final = 128
"""Most tokens of a graph evaluation in cells that became unified while serving: each token's mask
spans the cells of all sequences, so a smaller step keeps the plan's memory."""


class RuntimeConfig(Value):
    """Everything a replica is told; written by the operator, read once at start."""

    version: Literal["v1"] = "v1"
    """Version of this contract."""
    namespace: str = Field(default="", max_length=63)
    """Namespace of the InferenceModel."""
    model: str = Field(max_length=63)
    """Name of the InferenceModel."""
    served_names: tuple[str, ...] = Field(min_length=1, max_length=16)
    """Names that clients may use in the model field."""
    model_path: str = Field(max_length=1024)
    """Absolute container path; resolved by ``pod_path``."""
    model_digest: Digest
    """SHA-256 of the file; KV blocks are found by it."""
    plan_digest: str = Field(default="", max_length=64)
    """Digest of the plan that these settings come from."""
    context_tokens: int = Field(ge=64, le=16_777_216)
    """Tokens that one sequence may hold, prompt and answer together."""
    parallel: int = Field(default=1, ge=1, le=255)
    """Sequences that run at the same time."""
    batch_tokens: int = Field(default=512, ge=32, le=8192)
    """Most tokens of one step (llama.cpp's n_batch)."""
    ubatch_tokens: int = Field(default=512, ge=32, le=8192)
    """Most tokens of one graph evaluation (n_ubatch)."""
    prefill_tokens: int = Field(default=256, ge=16, le=8192)
    """Prompt tokens added to a step in which other sequences decode."""
    threads: int = Field(default=0, ge=0, le=1024)
    """0: as many as the container may use; never more than these."""
    kv_key_type: KvType = "f16"
    """Number format of the KV cells' keys."""
    kv_value_type: KvType = "f16"
    """Number format of the KV cells' values."""
    kv_unified: bool = False
    """True: sequences share cells. False: each has its own."""
    kv_auto: bool = False
    """The layout follows what requests share; ``kv_unified`` is the one to begin with."""
    kv_cells: int = Field(default=0, ge=0)
    """Unified KV: cells shared by all sequences; 0: enough for every sequence's whole context."""
    kv: KvTiers = KvTiers()
    """Where KV blocks go when they leave the device."""
    offload: Offload = Offload()
    """Which bytes of the model lie where."""
    speculation: Speculation = Speculation()
    """Tokens guessed ahead."""
    device_sampling: Literal["auto", "on", "off"] = "off"
    """Likeliest tokens found on the device. auto: where a device other than the CPU is measured to
    be faster; on: wherever it can, the CPU too. docs/adr/0019 says why not by default."""
    adapters: tuple[Adapter, ...] = Field(default=(), max_length=16)
    """LoRA adapters."""
    projector_path: str = Field(default="", max_length=1024)
    """GGUF of the multimodal projector, as an absolute container path; empty: no images."""
    projector_digest: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of that file; KV blocks of images are found by it."""
    max_waiting: int = Field(default=64, ge=0, le=100_000)
    """Requests queued before 429."""
    max_wait_s: float = Field(default=120, gt=0, le=86_400)
    """A request that would wait longer, by the speed measured, gets 429 at once."""
    reader_pace: float = Field(default=5, ge=0, le=10_000)
    """Tokens per second that whoever reads a stream is taken to follow. While streams queue, those
    ahead of it stand still for new ones. 0: none does."""
    stream_interval_s: float = Field(default=0.02, ge=0, le=1)
    """Texts of one answer leave so many seconds apart at least while nothing but decoding goes on,
    except the first one and the last. 0: every token by itself."""
    request_timeout_s: float = Field(default=3600, gt=0, le=86_400)
    """A request older than this ends with what it has."""
    max_tokens: int = Field(default=0, ge=0)
    """Most tokens of one answer; 0: as the context allows."""
    sampling: SamplingDefaults = SamplingDefaults()
    """Used for every field that a request leaves out."""
    drain_timeout_s: float = Field(default=30, ge=0, le=3600)
    """Seconds that running requests get after SIGTERM."""
    step_timeout_s: float = Field(default=60, gt=0, le=3600)
    """A step longer than this turns health red and ends the process."""
    trust_key: str = Field(default="", max_length=256)
    """Public Ed25519 key (base64url of the 32 raw bytes) that signs Identity; empty: none known,
    then every identity header is refused."""

    @model_validator(mode="after")
    def _adapters_have_names_of_their_own(self) -> Self:
        taken = list(self.served_names)
        for adapter in self.adapters:
            if adapter.name in taken:
                raise ValueError(f"adapters: the name {adapter.name} is taken; give it another")
            taken.append(adapter.name)
        return self

    @property
    def file_paths(self) -> tuple[str, ...]:
        """Every file that a replica opens, as container paths: the model first."""
        draft = (self.speculation.draft_path,) if self.speculation.draft_path else ()
        projector = (self.projector_path,) if self.projector_path else ()
        return (self.model_path, *projector, *draft, *(adapter.path for adapter in self.adapters))

    @property
    def max_outputs(self) -> int:
        """Rows of logits that one step may ask for."""
        guessed = 0 if self.speculation.mode == "off" else self.speculation.max_tokens
        return self.parallel * (1 + guessed)
