"""InferencePool: where models may run, with what, and from which cache.

Owns: the types of ``spec`` and their bounds. Does not own: ``modelCache`` (``model_cache.py``), CRD
generation (``crd.py``), planning.
Pure. A field stands here only if it has an effect; its docstring is its ``kubectl explain`` text.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from terrace.api.markers import ATOMIC, SET, list_map, looks_like, rule, rules
from terrace.api.model_cache import FIXED, GROWS, ModelCache
from terrace.api.names import MAX_FLAVOR_LENGTH
from terrace.api.offload import Offload
from terrace.api.values import ApiValue, Quantity

Cidr = Annotated[
    str,
    Field(
        max_length=43,
        json_schema_extra=rules(
            rule("isCIDR(self)", "must be a network such as 10.0.0.0/8 or fd00::/8")
        ),
    ),
]


Endpoint = Annotated[
    str,
    Field(
        pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$",
        max_length=512,
        json_schema_extra=looks_like("must be a URL such as https://mirror.example/hf"),
    ),
]


class Toleration(ApiValue):
    """A taint that replicas of this flavor tolerate, as in a pod."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.value) || !has(self.operator) || self.operator != 'Exists'",
                "operator Exists takes no value; drop value or use Equal",
                field=".value",
            ),
            rule(
                "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
                "without key, operator must be Exists (it then tolerates every taint)",
                field=".operator",
            ),
            rule(
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "tolerationSeconds needs effect NoExecute",
                field=".tolerationSeconds",
            ),
        )
    )

    key: str | None = Field(default=None, max_length=253)
    """Key of the taint. Absent, with operator Exists: every taint."""
    operator: Literal["Exists", "Equal"] | None = None
    """Exists takes any value of the taint, Equal takes the one in value. Default: Equal."""
    value: str | None = Field(default=None, max_length=63)
    """Value of the taint, for operator Equal. Default: the empty one."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint. Default: every effect."""
    toleration_seconds: int | None = Field(default=None, ge=0, le=2**31 - 1)
    """Seconds that a replica stays on a node which gets a NoExecute taint. Default: for ever."""


class HostResources(ApiValue):
    """CPU and memory of one replica; what is absent is planned."""

    cpu: Quantity | None = None
    """CPU request and limit of a replica; rounded down, its number of threads. Default: one thread
    less than the cores of the flavor's smallest node, at most 16; a quarter of a CPU requested for
    each thread, so that models that are seldom busy share a node; no limit."""
    memory: Quantity | None = None
    """Most memory a replica may take. Default: what its plan needs, if a node has it. A plan that
    needs more shrinks where the model leaves context open, or the model is not placed."""


_IS_CPU = "(!has(self.accelerator) || self.accelerator == 'cpu')"


class Flavor(ApiValue):
    """One kind of hardware the pool offers."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *(
                rule(
                    f"!has(self.{field}) || !{_IS_CPU}",
                    f"{field} is about devices: set accelerator to their kind, such as nvidia, or "
                    "drop it",
                    field=f".{field}",
                )
                for field in (
                    "count",
                    "memoryPerDevice",
                    "sharing",
                    "resourceName",
                    "resourceClaimTemplateName",
                    "minResidenceSeconds",
                    "packing",
                    "deviceSampling",
                )
            ),
            rule(
                "!has(self.sharing) || self.sharing != 'Shared' || !has(self.count)"
                " || self.count == 1",
                "sharing Shared gives a share of one device: drop count",
                field=".count",
            ),
            *(
                rule(
                    f"!has(self.resourceClaimTemplateName) || {excluded}",
                    message,
                    field=f".{field}",
                )
                for field, excluded, message in (
                    (
                        "resourceName",
                        "!has(self.resourceName)",
                        "resourceClaimTemplateName brings the devices; drop resourceName",
                    ),
                    (
                        "sharing",
                        "!has(self.sharing)",
                        "the ResourceClaimTemplate says how its devices are shared; drop sharing",
                    ),
                    (
                        "memoryPerDevice",
                        "has(self.memoryPerDevice)",
                        "nothing tells what a claim brings: set memoryPerDevice",
                    ),
                )
            ),
        )
    )

    name: str = Field(
        pattern=rf"^[a-z0-9]{{1,{MAX_FLAVOR_LENGTH}}}$",
        max_length=MAX_FLAVOR_LENGTH,
        json_schema_extra=looks_like(
            "must be lower-case letters and digits; names of pods are made from it"
        ),
    )
    """Name of the flavor: lower-case letters and digits. Part of the names of the pods."""
    accelerator: str = Field(
        default="cpu",
        pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$",
        max_length=32,
        json_schema_extra=looks_like("must be the name of an accelerator, such as cpu or nvidia"),
    )
    """Kind of device: cpu, or a name of the operator's accelerator table such as nvidia, amd,
    intel-gpu or ascend. What llama.cpp cannot use is refused, never replaced by the CPU.
    Default: cpu."""
    device_sampling: Literal["Off", "Auto", "On"] | None = None
    """Whether devices find the likeliest tokens, so that whole rows of logits stay there: Auto
    where that is measured to be faster. Not stable with software Vulkan. Default: Off."""
    count: int | None = Field(default=None, ge=1, le=16)
    """Devices of one replica; a model's layers are split over them. Default: 1."""
    memory_per_device: Quantity | None = None
    """Memory of one device, where the labels of its nodes do not tell. Default: as they say."""
    sharing: Literal["Exclusive", "Shared"] | None = None
    """Shared lets several replicas have one device, each within a share of its memory: as many as
    the vendor's plugin offers. Time slices do not isolate. Default: Exclusive, one client."""
    resource_name: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
        max_length=128,
        json_schema_extra=looks_like("must be an extended resource such as nvidia.com/gpu"),
    )
    """Extended resource to request instead of the accelerator's own, for example a MIG slice,
    nvidia.com/mig-1g.10gb."""
    resource_claim_template_name: str | None = Field(default=None, min_length=1, max_length=253)
    """A ResourceClaimTemplate in the same namespace that brings the devices of a replica (dynamic
    resource allocation), instead of an extended resource. Needs memoryPerDevice."""
    min_residence_seconds: int | None = Field(default=None, ge=0, le=86400)
    """Seconds that a model keeps its device before one of higher priority may take it.
    Default: 300."""
    packing: Literal["Pack", "Spread"] | None = None
    """Which of its nodes are preferred. Pack: those with fewest devices free, so that whole nodes
    stay free for models that need many. Spread: those with most. Default: Pack."""
    node_selector: dict[str, Annotated[str, Field(max_length=63)]] = Field(
        default_factory=dict, max_length=16
    )
    """Labels a node must have to be of this flavor. Default: every node is."""
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=16, json_schema_extra=ATOMIC
    )
    """Taints that replicas of this flavor tolerate."""
    host: HostResources = HostResources()
    """CPU and memory of one replica."""
    runtime_image: str | None = Field(default=None, min_length=1, max_length=512)
    """Image of the runtime instead of the one the operator was installed with."""


class Sources(ApiValue):
    """Mirrors and stores that model files come from."""

    hugging_face_endpoint: Endpoint | None = None
    """Mirror of the Hugging Face hub, for hf:// sources. Default: the hub itself."""
    s3_endpoint: Endpoint | None = None
    """S3-compatible store, for s3:// sources. Default: Amazon's."""
    s3_region: str | None = Field(default=None, pattern=r"^[a-z0-9-]+$", max_length=64)
    """Region of the S3 store. Default: us-east-1."""
    oci_endpoint: Endpoint | None = None
    """Mirror that is asked instead of the registry an oci:// source names."""


class Access(ApiValue):
    """What the pool's models may reach, and what their callers share."""

    allowed_networks: list[Cidr] = Field(default_factory=list, max_length=16, json_schema_extra=SET)
    """CIDRs that model sources may resolve to although they are private, for example a mirror in
    the cluster: 10.0.0.0/8. Loopback, link-local and private addresses are refused otherwise."""
    cache_isolation: Literal["Tenant", "Pool"] = "Tenant"
    """Who shares kept KV blocks. Tenant: no block of one tenant answers another, so that nobody can
    learn from the speed of an answer what others asked. Pool: all callers of a model share, for
    example one long system prompt. Default: Tenant."""


class Queue(ApiValue):
    """Requests that wait in each replica."""

    max_requests: int = Field(default=64, ge=0, le=10000)
    """Requests that may wait per replica before the next one gets 429. Default: 64."""


class Streams(ApiValue):
    """How answers are streamed."""

    reader_tokens_per_second: int = Field(default=5, ge=0, le=10000)
    """How fast whoever reads a streamed answer is taken to read. While streams wait, those that are
    ahead of their readers stand still, so that new ones begin sooner. 0: none does. Default: 5."""
    interval_milliseconds: int = Field(default=20, ge=0, le=1000)
    """Pieces of one answer leave so far apart at least, several tokens together where they are made
    faster: that leaves the CPUs to the model. 0: every token by itself. Default: 20."""


class PoolSpec(ApiValue):
    """Where the models of this pool may run and how their memory is used."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *FIXED,
            rule(
                "!has(self.offload) || !has(self.offload.disk) || has(self.offload.maxDisk)"
                " || (has(self.offload.profile) && self.offload.profile == 'DiskHeavy')",
                "spec.offload.disk has no effect without a size: set spec.offload.maxDisk (0: only "
                "for models that set their own)",
                field=".offload.maxDisk",
            ),
            GROWS,
        )
    )

    flavors: list[Flavor] = Field(min_length=1, max_length=8, json_schema_extra=list_map("name"))
    """Kinds of hardware, in order of preference; a model takes the first that fits."""
    offload: Offload = Offload()
    """Defaults for the pool's models."""
    model_cache: ModelCache = ModelCache()
    """The volumes that hold model files."""
    sources: Sources = Sources()
    """Mirrors and stores that model files come from."""
    access: Access = Access()
    """What the pool's models may reach, and what their callers share."""
    queue: Queue = Queue()
    """Requests that wait in each replica."""
    streams: Streams = Streams()
    """How answers are streamed."""
    drain_timeout_seconds: int = Field(default=30, ge=0, le=3600)
    """Seconds that running requests get to finish when a replica stops. Default: 30."""

    @model_validator(mode="after")
    def _flavors_have_their_own_names(self) -> Self:
        if len({flavor.name for flavor in self.flavors}) < len(self.flavors):
            raise ValueError("flavors: two of them have one name")
        return self
