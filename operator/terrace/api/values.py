"""What all types of both kinds are made of: the base class, quantities, names of claims.

Owns: their form on the wire and its check. Does not own: any field (``pool.py``, ``model.py``,
``offload.py``, ``status.py``). Pure.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from terrace.api.markers import INT_OR_STRING, looks_like, rule, rules
from terrace.api.quantity import positive_quantity, some_quantity

Quantity = Annotated[
    str,
    BeforeValidator(positive_quantity),
    Field(
        max_length=32,
        json_schema_extra=INT_OR_STRING
        | rules(
            rule(
                "isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))",
                "must be a quantity above zero, such as 500m, 4, 1.5Gi or 20Gi",
            )
        ),
    ),
]
"""A Kubernetes quantity; a plain number may be written without quotes, as everywhere."""
QuantityOrZero = Annotated[
    str,
    BeforeValidator(some_quantity),
    Field(
        max_length=32,
        json_schema_extra=INT_OR_STRING
        | rules(
            rule(
                "isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))",
                "must be a quantity such as 512Mi or 64Gi, or 0 for none",
            )
        ),
    ),
]
"""A quantity of which 0 says that there is none."""
KvType = Literal["f16", "q8_0", "q4_0"]
ClaimName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        max_length=253,
        json_schema_extra=looks_like("must be the name of a PersistentVolumeClaim"),
    ),
]
ClassName = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        max_length=253,
        json_schema_extra=looks_like("must be the name of a StorageClass"),
    ),
]


class ApiValue(BaseModel):
    """camelCase on the wire, frozen, closed; docstrings become descriptions."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )


class StatusValue(ApiValue):
    """camelCase on the wire, frozen; unknown fields are those of a newer operator."""

    model_config = ConfigDict(extra="ignore")
