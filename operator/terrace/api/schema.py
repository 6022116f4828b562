"""From a pydantic type to a structural OpenAPI v3 schema, as CustomResourceDefinitions want it.

Owns: the translation: references inlined, null branches dropped, nothing that a structural schema
forbids, a ``type`` on every node, a list type on every list. Does not own: the types, or what is
around the schema (``crd.py``). Pure. There are no defaults in it on purpose: a default in a schema
is stored with the object and cannot change later; ours are in code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from terrace.api.markers import ATOMIC, INT_OR_STRING, MESSAGE, VALIDATIONS, rule

if TYPE_CHECKING:
    from pydantic import BaseModel

Schema = dict[str, Any]

_KEPT = (
    "type",
    "description",
    "format",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
)
_REFUSED = ("allOf", "oneOf", "not", "prefixItems", "discriminator", "patternProperties")
_INT_OR_STRING = next(iter(INT_OR_STRING))


class UnsupportedTypeError(TypeError):
    """A type has no structural schema; the message names where it is."""


def structural_schema(kind: type[BaseModel]) -> Schema:
    """The schema of ``kind``, by alias. Raises UnsupportedTypeError where there is none."""
    document = kind.model_json_schema(by_alias=True)
    return _node(document, document.get("$defs", {}), kind.__name__, ())


def _node(source: Schema, definitions: Schema, where: str, seen: tuple[str, ...]) -> Schema:
    """One node; ``where`` is its path for messages, ``seen`` the references it is inside of."""
    source, seen = _resolve(source, definitions, where, seen)
    forbidden = [key for key in _REFUSED if key in source]
    if forbidden:
        raise UnsupportedTypeError(f"{where}: {forbidden[0]} has no structural schema")
    node: Schema = {key: source[key] for key in _KEPT if key in source}
    node |= {key: value for key, value in source.items() if key.startswith("x-kubernetes-")}
    if "description" in node:
        node["description"] = " ".join(node["description"].split())
    if "const" in source:
        node["enum"] = [source["const"]]
    _bounds(source, node)
    _pattern(source, node)
    if _INT_OR_STRING in node:
        node.pop("type", None)
        node["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    elif "type" not in node:
        raise UnsupportedTypeError(f"{where}: no type; say what it is")
    _children(source, node, definitions, where, seen)
    return node


def _resolve(
    source: Schema, definitions: Schema, where: str, seen: tuple[str, ...]
) -> tuple[Schema, tuple[str, ...]]:
    """Follow references and drop the null branch of ``T | None``; outer words win over inner."""
    while "$ref" in source or "anyOf" in source:
        outer = {k: v for k, v in source.items() if k not in {"$ref", "anyOf"}}
        if "$ref" in source:
            name = source["$ref"].rpartition("/")[2]
            if name in seen:
                raise UnsupportedTypeError(f"{where}: {name} holds itself")
            seen = (*seen, name)
            inner = definitions[name]
        else:
            branches = [b for b in source["anyOf"] if b.get("type") != "null"]
            if len(branches) != 1:
                raise UnsupportedTypeError(f"{where}: a union has no structural schema")
            inner = branches[0]
        source = {**inner, **outer}
    return source, seen


def _bounds(source: Schema, node: Schema) -> None:
    """Exclusive bounds are numbers in JSON Schema and flags in OpenAPI 3.0."""
    for limit in ("Minimum", "Maximum"):
        if f"exclusive{limit}" in source:
            node[limit.lower()] = source[f"exclusive{limit}"]
            node[f"exclusive{limit}"] = True


def _pattern(source: Schema, node: Schema) -> None:
    if "pattern" not in source:
        return
    if MESSAGE not in source:
        node["pattern"] = source["pattern"]
        return
    cel = f"self.matches({_cel_string(source['pattern'])})"
    node[VALIDATIONS] = [rule(cel, source[MESSAGE]), *node.get(VALIDATIONS, [])]


def _cel_string(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _children(
    source: Schema, node: Schema, definitions: Schema, where: str, seen: tuple[str, ...]
) -> None:
    if node.get("type") == "array":
        node["items"] = _node(source["items"], definitions, f"{where}[]", seen)
        if "x-kubernetes-list-type" not in node:
            node |= ATOMIC
    if node.get("type") != "object":
        return
    if "properties" in source:
        node["properties"] = {
            name: _node(child, definitions, f"{where}.{name}", seen)
            for name, child in source["properties"].items()
        }
    elif isinstance(source.get("additionalProperties"), dict):
        values = source["additionalProperties"]
        node["additionalProperties"] = _node(values, definitions, f"{where}{{}}", seen)
    else:
        raise UnsupportedTypeError(f"{where}: an object without properties")
