"""InferencePool: where models may run, with what, and from which cache.

Owns: the types of ``spec`` and their bounds. Does not own: CRD generation (``crd.py``), planning.
Pure. A field stands here only if it has an effect; its docstring is its ``kubectl explain`` text.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Quantity = Annotated[
    str, Field(pattern=r"^([0-9]+(\.[0-9]+)?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$", max_length=32)
]
KvType = Literal["f16", "q8_0", "q4_0"]


class ApiValue(BaseModel):
    """camelCase on the wire, frozen, closed."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid"
    )


class Toleration(ApiValue):
    """A taint that replicas of this flavor tolerate, as in a pod."""

    key: str | None = Field(default=None, max_length=253)
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = Field(default=None, max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class HostResources(ApiValue):
    """CPU and memory of one replica; what is absent is planned."""

    cpu: Quantity | None = None
    """CPU request and limit of a replica, and its thread count. Default: one core less than the
    smallest node of the flavor, at least one, at most 16."""
    memory: Quantity | None = None
    """Most memory a replica may take. Default: what its plan needs, if a node has it."""


class Flavor(ApiValue):
    """One kind of hardware the pool offers."""

    name: str = Field(pattern=r"^[a-z0-9]{1,15}$")
    """Name of the flavor: lower-case letters and digits. Part of the names of the pods."""
    accelerator: Literal["cpu"] = "cpu"
    """Kind of device. Only cpu is supported so far."""
    node_selector: dict[str, str] = Field(default_factory=dict, max_length=16)
    """Labels a node must have to be of this flavor."""
    tolerations: list[Toleration] = Field(default_factory=list, max_length=16)
    """Taints that replicas of this flavor tolerate."""
    host: HostResources = HostResources()
    """CPU and memory of one replica."""
    runtime_image: str | None = Field(default=None, min_length=1, max_length=512)
    """Image of the runtime instead of the one the operator was installed with."""


class KvTypes(ApiValue):
    """Number formats of the KV cells."""

    key: KvType = "f16"
    """Format of keys. Quantised cells save memory; on a CPU they make reading prompts slower."""
    value: KvType = "f16"
    """Format of values."""


class Offload(ApiValue):
    """How the memory of a replica is used."""

    kv_types: KvTypes | None = None
    """Number formats of the KV cells. Default: f16 for both."""


class ModelCache(ApiValue):
    """The volume that holds model files, shared by the pool's models."""

    claim_name: str | None = Field(default=None, max_length=253)
    """An existing claim in the same namespace. Excludes size, storageClassName and accessMode."""
    size: Quantity | None = None
    """Size of the claim that the operator makes. Default: 20Gi."""
    storage_class_name: str | None = Field(default=None, max_length=253)
    """Storage class of that claim. Default: the cluster's default class."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"] | None = None
    """ReadWriteMany lets replicas run on several nodes. Default: ReadWriteOnce."""


class Access(ApiValue):
    """What the pool's models may reach."""

    allowed_networks: list[str] = Field(default_factory=list, max_length=16)
    """CIDRs that model sources may resolve to although they are private, for example a mirror in
    the cluster: 10.0.0.0/8. Loopback, link-local and private addresses are refused otherwise."""


class Queue(ApiValue):
    """Requests that wait in each replica."""

    max_requests: int = Field(default=64, ge=0, le=10000)
    """Requests that may wait per replica before the next one gets 429."""


class PoolSpec(ApiValue):
    """Where the models of this pool may run and how their memory is used."""

    flavors: list[Flavor] = Field(min_length=1, max_length=8)
    """Kinds of hardware, in order of preference; a model takes the first that fits."""
    offload: Offload = Offload()
    """Defaults for the pool's models."""
    model_cache: ModelCache = ModelCache()
    """The volume that holds model files."""
    access: Access = Access()
    """What the pool's models may reach."""
    queue: Queue = Queue()
    """Requests that wait in each replica."""
    drain_timeout_seconds: int = Field(default=30, ge=0, le=3600)
    """Seconds that running requests get to finish when a replica stops."""
