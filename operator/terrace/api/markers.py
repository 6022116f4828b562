"""Kubernetes extensions that pydantic has no words for: CEL rules, list types, error messages.

Owns: the values put into ``json_schema_extra``. Does not own: how they end up in a CRD
(``schema.py``). Pure. A rule written here is checked by the API server alone; where an object
stored before the rule could do harm, the type has a validator as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic.config import JsonDict

VALIDATIONS = "x-kubernetes-validations"
MESSAGE = "x-terrace-message"
"""Says what a string has to look like; ``schema.py`` turns pattern and message into a CEL rule, for
the API server's own words for a pattern show the regular expression alone."""

SET: JsonDict = {"x-kubernetes-list-type": "set"}
"""Items are unique; server-side apply merges them by value."""
ATOMIC: JsonDict = {"x-kubernetes-list-type": "atomic"}
"""Written as a whole."""

INT_OR_STRING: JsonDict = {"x-kubernetes-int-or-string": True}
"""A number or a string, as quantities are written."""


def list_map(*keys: str) -> JsonDict:
    """Items are objects, unique by ``keys``; server-side apply merges them one by one."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


def rule(cel: str, message: str, *, field: str = "") -> dict[str, Any]:
    """A CEL rule; ``field`` is the path below the object that is blamed, as ``.claimName``."""
    return {"rule": cel, "message": message, **({"fieldPath": field} if field else {})}


def rules(*each: dict[str, Any]) -> JsonDict:
    """Rules of one object or value."""
    return {VALIDATIONS: list(each)}


def looks_like(message: str) -> JsonDict:
    """What a string with a ``pattern`` must look like, for the person whose object is refused."""
    return {MESSAGE: message}
