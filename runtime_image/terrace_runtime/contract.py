"""What the operator side and the runtime say to each other: values, names and nothing else.

Owns: RuntimeConfig (operator -> runtime, a file), FetchSpec and FetchOutcome (operator <-> Job),
ModelFacts, FetchProgress, RuntimeReport (runtime -> operator), Identity (gateway -> runtime),
header, metric and path names, exit codes. Does not own: any behaviour beyond validation.
The operator side may import this module of ``terrace_runtime`` and no other. Imports stdlib and
pydantic only. Next: ``__main__`` reads RuntimeConfig; ``terrace.controller.manifests`` writes it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

CONTRACT_VERSION = "v1"

# Containers, ports and paths ------------------------------------------------------------------
RUNTIME_CONTAINER = "runtime"
FETCH_CONTAINER = "fetch"
RUNTIME_PORT = 8000
RUNTIME_PORT_NAME = "http"
CONFIG_DIR = "/etc/terrace"
RUNTIME_CONFIG_FILE = "runtime.json"
"""Key of the ConfigMap and name of the file in CONFIG_DIR that holds a RuntimeConfig as JSON."""
MODEL_CACHE_DIR = "/models"
"""Mount of the pool's model cache (read-only in replicas)."""
MODEL_SOURCE_DIR = "/source"
"""Mount of the user's own claim for ``pvc://`` sources (read-only)."""
TERMINATION_LOG = "/dev/termination-log"
MAX_TERMINATION_BYTES = 4096

# Exit codes of ``python -m terrace_runtime`` ----------------------------------------------------
EXIT_PERMANENT = 10
"""The same input gives the same failure (not a GGUF, wrong checksum): retrying is useless."""
EXIT_BAD_CONFIG = 11
"""RuntimeConfig does not parse."""
EXIT_MODEL_MISSING = 12
"""The model file is not where RuntimeConfig says: the cache was emptied; fetch again."""
EXIT_BACKEND = 13
"""llama.cpp could not start, load the model or decode its first batch."""
EXIT_ENGINE = 14
"""The engine died while serving (an abort inside llama.cpp, or a step over its bound)."""

# HTTP headers ---------------------------------------------------------------------------------
IDENTITY_HEADER = "x-terrace-identity"
"""Gateway -> runtime: a compact JWS (EdDSA) over an Identity. Absent: anonymous."""
REQUEST_ID_HEADER = "x-request-id"

# Metric names of the runtime (all labelled by nothing that a client chooses) ---------------------
METRIC_REQUESTS = "terrace_runtime_requests"
METRIC_PROMPT_TOKENS = "terrace_runtime_prompt_tokens"
METRIC_GENERATED_TOKENS = "terrace_runtime_generated_tokens"
METRIC_QUEUE = "terrace_runtime_requests_waiting"
METRIC_RUNNING = "terrace_runtime_requests_running"
METRIC_KV_USAGE = "terrace_runtime_kv_cache_usage_ratio"
METRIC_BATCH_TOKENS = "terrace_runtime_batch_tokens"
METRIC_STEP_SECONDS = "terrace_runtime_step_seconds"
METRIC_TTFT = "terrace_runtime_time_to_first_token_seconds"
METRIC_ITL = "terrace_runtime_inter_token_seconds"
METRIC_E2E = "terrace_runtime_request_seconds"


def pod_path(path: str) -> Path:
    """Where ``path`` of a container is on this machine.

    A pod that runs as a host process (the local cluster) has no mount namespace of its own; its
    runner lays the volumes out under a folder and names that folder in TERRACE_POD_ROOT.
    """
    root = os.environ.get("TERRACE_POD_ROOT")
    return Path(root) / path.lstrip("/") if root else Path(path)


class _Value(BaseModel):
    """Frozen, closed: an unknown key is a version skew and must not pass in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
KvType = Literal["f16", "q8_0", "q4_0"]


class LayerRun(_Value):
    """``count`` consecutive layers that have the same sizes; bytes are per layer."""

    count: int = Field(ge=1)
    weight_bytes: int = Field(ge=0)
    expert_bytes: int = Field(default=0, ge=0)
    """Part of weight_bytes that belongs to routed experts (may stay on the host)."""
    kv_heads: int = Field(ge=0)
    """0: the layer keeps no KV cells (recurrent, or shares another layer's)."""
    key_length: int = Field(ge=0)
    value_length: int = Field(ge=0)
    window: int = Field(default=0, ge=0)
    """Sliding window in tokens; 0: full attention."""


class ModelFacts(_Value):
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
    layers: tuple[LayerRun, ...] = Field(min_length=1, max_length=64)
    layers_are_merged: bool = False
    """True: unlike layers were joined upwards so that the facts fit; sizes are upper bounds."""
    token_embedding_bytes: int = Field(ge=0)
    output_bytes: int = Field(ge=0)
    """Output head and norms; 0 bytes of head where it is tied to the embedding."""
    repacked_bytes: int = Field(default=0, ge=0)
    """Weight bytes of types that CPU kernels copy into another layout (anonymous memory)."""
    chat_template: bool = False
    pooling: str = Field(default="", max_length=16)

    @property
    def layer_count(self) -> int:
        """How many blocks the model has."""
        return sum(run.count for run in self.layers)


class FetchSpec(_Value):
    """What the fetch Job does, as JSON in its environment (TERRACE_FETCH)."""

    version: Literal["v1"] = "v1"
    uri: str = Field(max_length=2048)
    sha256: Digest | None = None
    allowed_networks: tuple[str, ...] = ()
    """CIDRs that http(s) sources may resolve to although they are private."""


class FetchFailure(_Value):
    """Why a model file is not usable; ``reason`` becomes the condition's reason."""

    reason: Literal[
        "NotFound",
        "Unauthorized",
        "AddressRefused",
        "DownloadFailed",
        "ChecksumMismatch",
        "UnsupportedFormat",
        "Truncated",
        "InvalidModel",
        "DiskFull",
    ]
    message: str = Field(max_length=1024)
    permanent: bool
    """True: the same input fails again; the Job is not retried."""


class FetchOutcome(_Value):
    """The fetch Job's termination message: exactly one of ``facts`` and ``failure``."""

    version: Literal["v1"] = "v1"
    path: str = Field(default="", max_length=1024)
    """Model file as an absolute container path (under MODEL_CACHE_DIR or MODEL_SOURCE_DIR)."""
    facts: ModelFacts | None = None
    failure: FetchFailure | None = None


class FetchProgress(_Value):
    """The fetch Job's log lines, one JSON object each; the last one counts."""

    stage: Literal["download", "verify", "inspect"]
    done_bytes: int = Field(ge=0)
    total_bytes: int = Field(ge=0)
    """0: unknown."""
    bytes_per_second: int = Field(default=0, ge=0)
    seconds_left: int | None = None


class SamplingDefaults(_Value):
    """Used for every field that a request leaves out."""

    temperature: float = Field(default=0.8, ge=0, le=5)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=40, ge=0, le=10_000)
    min_p: float = Field(default=0.05, ge=0, le=1)
    repeat_penalty: float = Field(default=1.0, ge=0.1, le=10)


class RuntimeConfig(_Value):
    """Everything a replica is told; written by the operator, read once at start."""

    version: Literal["v1"] = "v1"
    namespace: str = Field(default="", max_length=63)
    model: str = Field(max_length=63)
    """Name of the InferenceModel."""
    served_names: tuple[str, ...] = Field(min_length=1, max_length=16)
    model_path: str = Field(max_length=1024)
    """Absolute container path; resolved by ``pod_path``."""
    model_digest: Digest
    plan_digest: str = Field(default="", max_length=64)
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
    """0: as many as the process may use."""
    kv_key_type: KvType = "f16"
    kv_value_type: KvType = "f16"
    kv_unified: bool = False
    max_waiting: int = Field(default=64, ge=0, le=100_000)
    """Requests queued before 429."""
    max_tokens: int = Field(default=0, ge=0)
    """Most tokens of one answer; 0: as the context allows."""
    sampling: SamplingDefaults = SamplingDefaults()
    drain_timeout_s: float = Field(default=30, ge=0, le=3600)
    """Seconds that running requests get after SIGTERM."""
    step_timeout_s: float = Field(default=60, gt=0, le=3600)
    """A step longer than this turns health red and ends the process."""
    trust_key: str = Field(default="", max_length=256)
    """Public Ed25519 key (base64url of the 32 raw bytes) that signs Identity; empty: none known,
    then every identity header is refused."""


class Identity(_Value):
    """Claims of IDENTITY_HEADER: who asks, how urgent, and for which model."""

    tenant: str = Field(default="", max_length=128)
    priority: Literal["interactive", "batch"] = "interactive"
    model: str = Field(max_length=128)
    """``namespace/name`` of the InferenceModel that the gateway chose."""
    exp: int
    """Seconds since the epoch after which the header is void."""


class MemoryReport(_Value):
    """Bytes; ``None`` where the backend does not tell."""

    weights_bytes: int | None = None
    kv_bytes: int | None = None
    compute_bytes: int | None = None
    anonymous_peak_bytes: int | None = None
    """Highest RssAnon + RssShmem of the pod's processes so far."""


class RuntimeReport(_Value):
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
