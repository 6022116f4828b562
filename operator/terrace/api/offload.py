"""``spec.offload`` of both kinds: how the memory of a replica is split over the tiers.

Owns: the types, their bounds, and how a model's fields override its pool's. Does not own: what a
profile means in bytes (``planner/tiers.py``). Pure. Next: ``pool.py`` and ``model.py`` hold it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from terrace.api.markers import rule, rules
from terrace.api.values import (
    ApiValue,
    ClaimName,
    ClassName,
    KvType,
    Quantity,
    QuantityOrZero,
)

Profile = Literal["Auto", "DeviceOnly", "Balanced", "HostHeavy", "DiskHeavy"]
MIN_SPILL = "16Mi"
MIN_MAX_DISK = "64Mi"
MIN_PREFETCH_WINDOW = "1Mi"


def _bytes(field: str) -> str:
    return f"quantity(string(self.{field}))"


def _at_least(field: str, least: str, words: str, *, or_zero: bool) -> dict[str, object]:
    zero = f" || {_bytes(field)}.compareTo(quantity('0')) == 0" if or_zero else ""
    return rule(
        f"!has(self.{field}) || {_bytes(field)}.compareTo(quantity('{least}')) >= 0{zero}",
        f"{field} must be at least {least}{words}",
        field=f".{field}",
    )


def _nothing_on(field: str) -> str:
    return f"(!has(self.{field}) || {_bytes(field)}.compareTo(quantity('0')) == 0)"


class KvTypes(ApiValue):
    """Number formats of the KV cells."""

    key: KvType = "f16"
    """Format of keys. Default: f16. Quantised cells save memory; on a CPU they make reading
    prompts slower."""
    value: KvType = "f16"
    """Format of values. Default: f16."""


class Disk(ApiValue):
    """Where the disk tier lies: at most one field."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.claimName) || !has(self.storageClassName)",
                "claimName names an existing claim, which has its own class; drop one",
                field=".storageClassName",
            ),
            rule(
                "!has(self.ephemeral) || !self.ephemeral || !has(self.claimName)",
                "ephemeral keeps blocks on the node's own disk, claimName on a claim; drop one",
                field=".claimName",
            ),
            rule(
                "!has(self.ephemeral) || !self.ephemeral || !has(self.storageClassName)",
                "ephemeral keeps blocks on the node's own disk, storageClassName on claims; "
                "drop one",
                field=".storageClassName",
            ),
        )
    )

    storage_class_name: ClassName | None = None
    """Storage class of the claims that are made, one per replica. Default: the cluster's default
    class. Claims that exist keep their class: delete one with its pod to move it."""
    claim_name: ClaimName | None = None
    """An existing claim in the same namespace; each replica uses a folder in it that is named after
    its pod. Several replicas on several nodes need a claim with ReadWriteMany."""
    ephemeral: bool | None = None
    """Keep blocks on the node's own disk (an emptyDir): they outlive a crash, and go with the
    pod."""


class Offload(ApiValue):
    """How the memory of a replica is used."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            _at_least("spillThreshold", MIN_SPILL, ", or 0 for no host tier", or_zero=True),
            _at_least("maxDisk", MIN_MAX_DISK, ", or 0 for no disk tier", or_zero=True),
            _at_least("prefetchWindow", MIN_PREFETCH_WINDOW, "", or_zero=False),
            rule(
                "!has(self.prefetchWindow) || !has(self.spillThreshold)"
                f" || {_bytes('prefetchWindow')}.compareTo({_bytes('spillThreshold')}) <= 0",
                "prefetchWindow must not be above spillThreshold: what is read ahead goes to the "
                "host tier",
                field=".prefetchWindow",
            ),
            rule(
                f"{_nothing_on('maxDisk')} || !has(self.spillThreshold)"
                f" || {_bytes('spillThreshold')}.compareTo(quantity('0')) > 0",
                "spillThreshold must be above 0 where maxDisk is: blocks reach the disk through "
                "the host tier",
                field=".spillThreshold",
            ),
            *(
                rule(
                    "!has(self.profile) || self.profile != 'DeviceOnly' || " + _nothing_on(field),
                    f"profile DeviceOnly keeps nothing outside of the device; drop {field} or "
                    "choose another profile",
                    field=f".{field}",
                )
                for field in ("spillThreshold", "maxDisk")
            ),
        )
    )

    profile: Profile | None = None
    """What is preferred where a field below is left out. Auto: a small host tier. Balanced: a host
    tier as large as the KV cells. HostHeavy: weights read into memory, a host tier of four times
    the KV cells. DiskHeavy: weights stay on disk and are paged, so that they may exceed the memory
    limit (slow), and a disk tier of 16Gi. DeviceOnly: nothing outside of the device. Default: the
    pool's, else Auto."""
    spill_threshold: QuantityOrZero | None = None
    """Bytes of KV blocks kept in host memory before the coldest go to disk: the host tier. Taken
    when a replica starts. 0 for none. Default: the pool's, else by the profile."""
    max_disk: QuantityOrZero | None = None
    """Most bytes of KV blocks on disk: the disk tier. It outlives restarts of a replica. 0 for
    none. Default: the pool's, else none, or 16Gi with profile DiskHeavy."""
    prefetch_window: Quantity | None = None
    """Bytes read from disk into host memory ahead of the batch planner, for requests that wait.
    Default: the pool's, else a quarter of spillThreshold, at most 64Mi."""
    kv_block_tokens: int | None = Field(default=None, ge=8, le=1024)
    """Tokens of one KV block, the unit in which prompts share and tiers move. Default: the pool's,
    else 32."""
    checkpoint_tokens: int | None = Field(default=None, ge=16, le=1_048_576)
    """Models with recurrent or sliding-window layers, whose cells cannot be cut into blocks: tokens
    of a prompt between two states that are kept. Fewer find more of a prompt again and keep fewer
    prompts. Default: the pool's, else 512."""
    checkpoint_count: int | None = Field(default=None, ge=0, le=4096)
    """Most states kept for such a model, within spillThreshold. 0 for none. Default: the pool's,
    else 32."""
    kv_types: KvTypes | None = None
    """Number formats of the KV cells. Default: the pool's, else f16 for both."""
    kv_layout: Literal["Auto", "Split", "Unified"] | None = None
    """Split: each conversation has cells of its own, which is faster where they differ. Unified:
    all share one pool, so that a common prompt is held once. Auto: Split, and Unified while most
    of what runs is shared. Default: the pool's, else Auto."""
    disk: Disk | None = None
    """Where the disk tier lies. Default: the pool's, else a claim per replica, of the cluster's
    default class."""


def overridden(pool: Offload, own: Offload) -> Offload:
    """The pool's settings with the model's in their place, field by field."""
    mine = {name: getattr(own, name) for name in Offload.model_fields}
    return pool.model_copy(
        update={name: value for name, value in mine.items() if value is not None}
    )
