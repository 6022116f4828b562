"""JSON schemas for kubeconform, from what a real API server says about itself.

Owns: turning its OpenAPI into one strict schema per kind. The published collections are on the
network; the server at hand knows its own version.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Schema = dict[str, Any]
_PREFIX = "#/definitions/"
_DROPPED = ("format", "default", "properties")


def write_schemas(openapi: Schema, folder: Path) -> int:
    """A file per kind, named as kubeconform looks for it; returns how many."""
    definitions = {name: _strict(each) for name, each in openapi["definitions"].items()}
    count = 0
    for name, definition in openapi["definitions"].items():
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            group = f"{kind['group'].partition('.')[0]}-" if kind["group"] else ""
            file = folder / f"{kind['kind']}-{group}{kind['version']}.json".lower()
            schema = {"$ref": f"{_PREFIX}{name}", "definitions": _needed(name, definitions)}
            file.write_text(json.dumps(schema))
            count += 1
    return count


def _strict(schema: Any) -> Any:
    """Objects with named fields take no others; words that JSON Schema lacks go."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("format") == "int-or-string":
        return {"type": ["string", "integer"]}
    if str(schema.get("description", "")).startswith("Quantity is"):
        return {"type": ["string", "number"]}
    made = {key: _strict(each) for key, each in schema.items() if key not in _DROPPED}
    if "properties" in schema:
        # Names of fields, which may be the very words that are dropped.
        made["properties"] = {key: _strict(each) for key, each in schema["properties"].items()}
        made.setdefault("additionalProperties", False)
    return made


def _needed(name: str, definitions: Schema) -> Schema:
    found: Schema = {}
    left = [name]
    while left:
        current = left.pop()
        if current not in found:
            found[current] = definitions[current]
            left.extend(_references(definitions[current]))
    return found


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [name for each in schema for name in _references(each)]
    if not isinstance(schema, dict):
        return []
    own = schema.get("$ref")
    below = [name for each in schema.values() for name in _references(each)]
    return [own.removeprefix(_PREFIX), *below] if isinstance(own, str) else below
