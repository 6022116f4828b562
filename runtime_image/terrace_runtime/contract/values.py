"""What every value of the contract is: frozen and closed.

Owns: the base class and the types that several of them share. Next: ``facts.py``, ``config.py``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Value(BaseModel):
    """Frozen, closed: an unknown key is a version skew and must not pass in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
KvType = Literal["f16", "q8_0", "q4_0"]
