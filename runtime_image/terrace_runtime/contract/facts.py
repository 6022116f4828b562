"""What a fetch is told, what it found out about the model file, and how far it is.

Owns: ModelFacts, ProjectorFacts, FetchSpec, FetchOutcome, FetchProgress, PruneSpec and
PruneOutcome. Does not own: reading a file (``terrace_runtime.models``). Next: ``config.py``, what a
plan made of these is.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from terrace_runtime.contract.packed import MAX_RUNS, unpack
from terrace_runtime.contract.values import Digest, Value


class LayerRun(Value):
    """``count`` consecutive layers that have the same sizes; bytes are per layer."""

    count: int = Field(ge=1)
    weight_bytes: int = Field(ge=0)
    expert_bytes: int = Field(default=0, ge=0)
    """Part of weight_bytes that belongs to routed experts (may stay on the host)."""
    feed_forward_bytes: int = Field(default=0, ge=0)
    """Part of weight_bytes that belongs to dense feed-forward matrices (may stay on the host)."""
    kv_heads: int = Field(ge=0)
    """0: the layer keeps no KV cells (recurrent, or shares another layer's)."""
    key_length: int = Field(ge=0)
    value_length: int = Field(ge=0)
    window: int = Field(default=0, ge=0)
    """Sliding window in tokens; 0: full attention."""
    repacked_bytes: int = Field(default=0, ge=0)
    """Part of weight_bytes that CPU kernels copy into another layout, where the layer is theirs."""
    state_bytes: int = Field(default=0, ge=0)
    """Recurrent state of one sequence."""


class Widths(Value):
    """Values per token inside a layer: what decides how large a step's graph is."""

    query: int = Field(default=0, ge=0)
    """All heads' queries together, of the widest layer."""
    expert: int = Field(default=0, ge=0)
    """Feed-forward width of one routed expert."""
    mixer: int = Field(default=0, ge=0)
    """Of a recurrent layer; 0: there is none."""
    carried: int = Field(default=0, ge=0)
    """What is carried through all layers beside the one vector per token."""
    gated: bool = True
    """Feed-forward blocks have a gate beside what goes up."""


class ModelFacts(Value):
    """What planning needs to know of a GGUF, from one bounded pass over its header."""

    version: Literal["v1"] = "v1"
    digest: Digest
    file_bytes: int = Field(ge=1)
    architecture: str = Field(max_length=64)
    name: str = Field(default="", max_length=128)
    quantization: str = Field(default="", max_length=32)
    """The weight type that holds most bytes, e.g. ``Q8_0``."""
    parameters: int = Field(ge=0)
    context_length: int = Field(ge=1)
    """Tokens the model was trained for."""
    embedding_length: int = Field(ge=1)
    feed_forward_length: int = Field(default=0, ge=0)
    heads: int = Field(default=0, ge=0)
    vocabulary: int = Field(ge=1)
    layers: tuple[LayerRun, ...] = Field(min_length=1, max_length=MAX_RUNS)
    """In order; JSON may hold them packed (``packed.py``)."""
    layers_are_merged: bool = False
    """True: unlike layers were joined upwards so that the facts fit; sizes are upper bounds."""
    token_embedding_bytes: int = Field(ge=0)
    output_bytes: int = Field(ge=0)
    """Output head and norms; 0 bytes of head where it is tied to the embedding."""
    repacked_bytes: int = Field(default=0, ge=0)
    """Weight bytes of types that CPU kernels copy into another layout (anonymous memory)."""
    chat_template: bool = False
    model_class: Literal["decoder", "encoder", "encoder-decoder"] = "decoder"
    pooling: str = Field(default="", max_length=16)
    """How token states become one embedding; empty: the model generates text."""
    recurrent_bytes: int = Field(default=0, ge=0)
    """State of recurrent layers per sequence, whatever its length."""
    weight_types: tuple[str, ...] = Field(default=(), max_length=32)
    """Types of all tensors, e.g. ``F32``, ``Q4_K``, sorted; a device's kernels must run each."""
    experts: int = Field(default=0, ge=0)
    """Routed experts of a layer; 0: none."""
    experts_used: int = Field(default=0, ge=0)
    """Those that one token goes through."""
    parts: int = Field(default=1, ge=1)
    """Files that the model is split into; its path is the first one's."""
    widths: Widths = Widths()

    @field_validator("layers", mode="before")
    @classmethod
    def _unpacked(cls, value: object) -> object:
        return unpack(value)

    @property
    def layer_count(self) -> int:
        """How many blocks the model has."""
        return sum(run.count for run in self.layers)


class ProjectorFacts(Value):
    """What planning needs to know of a multimodal projector, from its header."""

    version: Literal["v1"] = "v1"
    digest: Digest
    file_bytes: int = Field(ge=1)
    projector_type: str = Field(max_length=64)
    """As the file says: ``mlp``, ``gemma3``, ``idefics3``."""
    name: str = Field(default="", max_length=128)
    quantization: str = Field(default="", max_length=32)
    """The weight type that holds most bytes, e.g. ``F16``."""
    parameters: int = Field(ge=0)
    weight_bytes: int = Field(ge=0)
    """All tensors, as they are loaded."""
    image_size: int = Field(ge=1)
    """Pixels of a side of the square that one piece of an image is scaled to."""
    patch_size: int = Field(ge=1)
    """Pixels of a patch's side; a piece has (image_size / patch_size)^2 patches."""
    max_patches: int = Field(ge=1)
    """Patches of the largest piece that is encoded at once."""
    max_pieces: int = Field(default=1, ge=1)
    """Pieces that the largest image is cut into, its overview among them."""
    embedding_length: int = Field(ge=1)
    """Width of the image encoder."""
    feed_forward_length: int = Field(default=0, ge=0)
    heads: int = Field(ge=1)
    layers: int = Field(ge=1)
    """Transformer blocks of the image encoder."""
    output_length: int = Field(ge=1)
    """Values of one image row: must be the model's embedding_length."""
    max_rows: int = Field(ge=1)
    """Rows that the largest piece becomes."""
    rows_at_once: int = Field(default=0, ge=0)
    """Rows of a piece that attend to each other, so that one step takes them all; 0: none do."""


FileRole = Literal["model", "projector", "draft", "adapter"]
"""What a file is for: a draft is a whole model, an adapter has no facts of its own."""


class FetchSpec(Value):
    """What the fetch Job does, as JSON in its environment (TERRACE_FETCH)."""

    version: Literal["v1"] = "v1"
    uri: str = Field(max_length=2048)
    sha256: Digest | None = None
    role: FileRole = "model"
    secret_dir: str = Field(default="", max_length=1024)
    """Container path of the mounted secret, one file per key; empty: the source needs none."""
    hf_endpoint: str = Field(default="", max_length=512)
    """Base URL of a mirror of the Hugging Face hub; empty: the hub itself."""
    s3_endpoint: str = Field(default="", max_length=512)
    """Base URL of an S3-compatible store; empty: Amazon's in ``s3_region``."""
    s3_region: str = Field(default="", max_length=64)
    oci_endpoint: str = Field(default="", max_length=512)
    """Base URL of a mirror that is asked instead of the registry in an oci:// source."""
    allowed_networks: tuple[str, ...] = ()
    """CIDRs that http(s) sources may resolve to although they are private."""
    look_only: bool = False
    """Only the header is read, and nothing kept: each replica brings the file to a volume of its
    own. The source, or ``sha256``, must say the file's digest."""


class FetchFailure(Value):
    """Why a model file is not usable; ``reason`` becomes the condition's reason."""

    reason: Literal[
        "NotFound",
        "Unauthorized",
        "AddressRefused",
        "DownloadFailed",
        "ChecksumMismatch",
        "ChecksumRequired",
        "UnsupportedFormat",
        "Truncated",
        "InvalidModel",
        "DiskFull",
    ]
    message: str = Field(max_length=1024)
    permanent: bool
    """True: the same input fails again; the Job is not retried."""


class FileFacts(Value):
    """What there is to know of a file that is no model."""

    digest: Digest
    file_bytes: int = Field(ge=1)
    architecture: str = Field(default="", max_length=64)
    """Of the model that it fits, as its header says."""


AnyFacts = ModelFacts | ProjectorFacts | FileFacts
"""What there is to know of a file, by its role."""


class FetchOutcome(Value):
    """The fetch Job's termination message: ``facts``, ``projector``, ``file`` or ``failure``."""

    version: Literal["v1"] = "v1"
    path: str = Field(default="", max_length=1024)
    """Model file as an absolute container path (under MODEL_CACHE_DIR or MODEL_SOURCE_DIR)."""
    facts: ModelFacts | None = None
    file: FileFacts | None = None
    """Of an adapter."""
    projector: ProjectorFacts | None = None
    failure: FetchFailure | None = None


MAX_PRUNED = 48
"""Digests of one PruneSpec: as many as a termination message can name."""


class PruneSpec(Value):
    """What the prune Job frees, as JSON in its environment (TERRACE_PRUNE)."""

    version: Literal["v1"] = "v1"
    digests: tuple[Digest, ...] = Field(max_length=MAX_PRUNED)
    """Of ModelFacts and FileFacts; a digest stands for all parts of its file."""
    unused_seconds: int = Field(default=0, ge=0)
    """A file that a fetch asked for within this time stays."""
    abandoned_seconds: int = Field(default=0, ge=0)
    """Unfinished downloads that got no byte for this time go as well; 0: they stay."""


class PruneOutcome(Value):
    """The prune Job's termination message and its one line of output."""

    version: Literal["v1"] = "v1"
    freed: tuple[Digest, ...] = Field(default=(), max_length=MAX_PRUNED)
    """No longer in the cache, also those that were not there before."""
    freed_bytes: int = Field(default=0, ge=0)
    kept: tuple[Digest, ...] = Field(default=(), max_length=MAX_PRUNED)
    """Being fetched right now, or asked for within ``unused_seconds``: ask again later."""
    failure: FetchFailure | None = None
    """Why it stopped early; try again."""


class FetchProgress(Value):
    """The fetch Job's log lines, one JSON object each; the last one counts."""

    stage: Literal["download", "verify", "inspect"]
    done_bytes: int = Field(ge=0)
    total_bytes: int = Field(ge=0)
    """0: unknown."""
    bytes_per_second: int = Field(default=0, ge=0)
    seconds_left: int | None = None
