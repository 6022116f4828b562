"""The volumes that hold a pool's model files: one that is shared, or one for each replica.

Owns: ``modelCache`` and what a stored pool may change of it. Does not own: the rest of the pool
(``pool.py``), claims (``terrace.controller.model_volumes``). Pure.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, model_validator

from terrace.api.markers import rule, rules
from terrace.api.values import ApiValue, ClaimName, ClassName, Quantity

_SHARED_ONLY = ("claimName", "accessMode", "deleteUnusedAfterSeconds")
"""Fields of modelCache that need a claim which the pool's models share."""


class ModelCache(ApiValue):
    """The volumes that hold model files."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *(
                rule(
                    f"!has(self.sharing) || self.sharing == 'Shared' || !has(self.{field})",
                    f"{field} has no meaning where each replica has a volume of its own; drop it "
                    "or set sharing to Shared",
                    field=f".{field}",
                )
                for field in _SHARED_ONLY
            ),
            *(
                rule(
                    f"!has(self.claimName) || !has(self.{field})",
                    f"claimName names an existing claim, which has its own {field}; drop one",
                    field=f".{field}",
                )
                for field in ("size", "storageClassName", "accessMode")
            ),
        )
    )

    sharing: Literal["Shared", "PerReplica"] | None = None
    """Shared: one claim for all models of the pool, to which each file is fetched once. PerReplica:
    every replica has a claim of its own and fetches its files itself, so that replicas run on any
    node without ReadWriteMany storage. Default: Shared. Immutable."""
    claim_name: ClaimName | None = None
    """An existing claim in the same namespace. Excludes size, storageClassName and accessMode.
    Immutable."""
    size: Quantity | None = None
    """Size of each claim that is made. Default: 20Gi. It can grow where the storage class
    allows it."""
    storage_class_name: ClassName | None = None
    """Storage class of that claim. Default: the cluster's default class. Immutable."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"] | None = None
    """ReadWriteMany lets replicas run on several nodes. Default: ReadWriteOnce. Immutable."""
    delete_unused_after_seconds: int | None = Field(default=None, ge=0, le=31536000)
    """Seconds after which a file that no model of the pool uses is deleted. Default: never."""

    @model_validator(mode="after")
    def _either_ours_or_theirs(self) -> Self:
        if self.claim_name and (self.size or self.storage_class_name or self.access_mode):
            raise ValueError("claimName excludes size, storageClassName and accessMode")
        return self

    @model_validator(mode="after")
    def _nothing_for_all_where_each_has_its_own(self) -> Self:
        if self.is_per_replica:
            for field, value in zip(
                _SHARED_ONLY,
                (self.claim_name, self.access_mode, self.delete_unused_after_seconds),
                strict=True,
            ):
                if value is not None:
                    raise ValueError(f"{field} has no meaning where sharing is PerReplica")
        return self

    @property
    def is_per_replica(self) -> bool:
        """Whether each replica has a claim of its own."""
        return self.sharing == "PerReplica"


def _fixed(field: str, default: str = "") -> dict[str, object]:
    """A field of modelCache that a claim cannot change once it is made."""
    path = f"modelCache.{field}"
    new, old = (
        f"(has({it}.modelCache) && has({it}.{path}) ? {it}.{path} : '{default}')"
        for it in ("self", "oldSelf")
    )
    return rule(
        f"{new} == {old}",
        f"spec.modelCache.{field} is immutable; make a new InferencePool for another claim",
        field=f".modelCache.{field}",
    )


FIXED = (
    _fixed("sharing", "Shared"),
    _fixed("claimName"),
    _fixed("storageClassName"),
    _fixed("accessMode"),
)
"""Rules of the pool's spec: what can never change."""
GROWS = rule(
    "!has(self.modelCache) || !has(self.modelCache.size) || !has(oldSelf.modelCache)"
    " || !has(oldSelf.modelCache.size) || quantity(string(self.modelCache.size))"
    ".compareTo(quantity(string(oldSelf.modelCache.size))) >= 0",
    "spec.modelCache.size can only grow: a volume cannot shrink",
    field=".modelCache.size",
)
"""Rule of the pool's spec: a volume cannot shrink."""
