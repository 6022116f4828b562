"""Stored objects into types: the one place where a spec is trusted from here on.

Owns: parsing both specs and saying what is wrong with one. Does not own: validation at the API
server (the CRDs): this catches what was stored before a rule existed. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from terrace.controller.kinds import Manifest

MAX_PROBLEMS = 5
Spec = TypeVar("Spec", bound=BaseModel)


class InvalidSpecError(Exception):
    """A stored spec does not parse; the message names each field."""


def parse_spec(spec_type: type[Spec], stored: Manifest) -> Spec:
    """The spec as a value."""
    try:
        return spec_type.model_validate(stored.get("spec") or {})
    except ValidationError as error:
        problems = [
            f"{'.'.join(['spec', *map(str, problem['loc'])])}: {problem['msg']}"
            for problem in error.errors(include_url=False)[:MAX_PROBLEMS]
        ]
        raise InvalidSpecError("; ".join(problems)) from error
