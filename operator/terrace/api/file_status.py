"""What a model's status tells of its files: facts, adapters, the running download.

Owns: the types. Does not own: filling them in (``controller/facts.py``, ``files.py``,
``download_status.py``), the rest of the status (``status.py``). Pure.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from terrace.api.values import StatusValue


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


class HeaderStatus(StatusValue):
    """A file whose header was read."""

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


class ModelStatus(HeaderStatus):
    """Facts of the model file, read from its header."""

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


class ProjectorStatus(HeaderStatus):
    """Facts of the projector, read from its header."""

    projector_type: str
    """Kind of projector, as llama.cpp names it."""
    name: str = ""
    """Name that the file gives itself."""
    quantization: str = ""
    """Weight type that holds most bytes."""
    parameters: int
    """Number of parameters."""
    weight_bytes: int
    """Bytes of its weights."""
    image_size: int
    """Side of an image's piece in pixels."""
    patch_size: int
    """Side of a patch in pixels."""
    max_patches: int
    """Patches of the largest piece."""
    max_pieces: int = 1
    """Pieces of the largest image."""
    embedding_length: int
    """Width of the image encoder."""
    feed_forward_length: int = 0
    """Width of its feed-forward layers."""
    heads: int
    """Its attention heads."""
    layers: int
    """Its layers."""
    output_length: int
    """Width of an image row, which is the model's."""
    max_rows: int
    """Rows of the largest piece."""
    rows_at_once: int = 0
    """Image rows that one step must take together."""


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
    """Which file, as "the projector" or "adapter NAME"; empty: the model's own."""
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
