"""The environment, command and arguments of a container. Pure.

Owns: env, envFrom, $(VAR) expansion, which ConfigMaps and Secrets are needed. Does not own:
fetching them. Next: ``container.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from terrace.local.pods.downward import Facts, field_value, resource_value
from terrace.local.pods.ports import Data, NotReadyError
from terrace.local.pods.spec import Container, InvalidPodError, Json

_REFERENCE = re.compile(r"\$(?:(\$)|\(([^()]*)\))")


@dataclass(frozen=True)
class Reference:
    """A ConfigMap or Secret by name."""

    kind: Literal["configmap", "secret"]
    name: str


Found = Mapping[Reference, Data | None]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replaces $(NAME) where NAME is known; $$ is a plain $; anything else stays as it is."""

    def replacement(match: re.Match[str]) -> str:
        if match[1]:
            return "$"
        return variables.get(match[2], match[0])

    return _REFERENCE.sub(replacement, text)


def references(container: Container) -> Iterator[Reference]:
    """Every ConfigMap and Secret that the environment of ``container`` names."""
    for source in container.env_from:
        yield from (found for found, _ in _sources(source))
    for variable in container.env:
        for found, _ in _sources(variable.get("valueFrom") or {}):
            yield found


def environment(
    container: Container, facts: Facts, found: Found, base: Mapping[str, str]
) -> dict[str, str]:
    """All variables: ``base``, then envFrom in order, then env in order, later ones winning.

    Raises:
        NotReadyError: a ConfigMap, a Secret or a key is missing and not optional.
        InvalidPodError: a reference is of a form this runner does not know.
    """
    result = dict(base)
    for source in container.env_from:
        for reference, entry in _sources(source):
            data = _data(found, reference, entry)
            prefix = source.get("prefix") or ""
            result |= {prefix + key: _text(value) for key, value in (data or {}).items()}
    for variable in container.env:
        value = _value(variable, container, facts, found, result)
        if value is not None:
            result[variable["name"]] = value
    return result


def _value(
    variable: Json, container: Container, facts: Facts, found: Found, so_far: Mapping[str, str]
) -> str | None:
    origin = variable.get("valueFrom")
    if not origin:
        return expand(variable.get("value") or "", so_far)
    if "fieldRef" in origin:
        return field_value(origin["fieldRef"]["fieldPath"], facts)
    if "resourceFieldRef" in origin:
        return resource_value(origin["resourceFieldRef"], container, facts)
    for reference, entry in _sources(origin):
        data = _data(found, reference, entry)
        if data is None or entry["key"] not in data:
            if entry.get("optional"):
                return None
            raise NotReadyError(
                f"couldn't find key {entry['key']} in {reference.kind} {reference.name}"
            )
        return _text(data[entry["key"]])
    raise InvalidPodError(f"env {variable['name']!r}: {', '.join(origin)} is not known here")


def _sources(entry: Json) -> Iterator[tuple[Reference, Json]]:
    for field in ("configMapRef", "configMapKeyRef"):
        if field in entry:
            yield Reference("configmap", entry[field].get("name", "")), entry[field]
    for field in ("secretRef", "secretKeyRef"):
        if field in entry:
            yield Reference("secret", entry[field].get("name", "")), entry[field]


def _data(found: Found, reference: Reference, entry: Json) -> Data | None:
    data = found.get(reference)
    if data is None and not entry.get("optional"):
        raise NotReadyError(f'{reference.kind} "{reference.name}" not found')
    return data


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")
