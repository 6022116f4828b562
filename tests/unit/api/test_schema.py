from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from terrace.api.markers import INT_OR_STRING, SET, list_map, looks_like, rule, rules
from terrace.api.schema import UnsupportedTypeError, structural_schema
from terrace.api.values import ApiValue


class Inner(ApiValue):
    """An inner value."""

    name: str
    """Its name."""


class Everything(ApiValue):
    """Every kind of field."""

    inner: Inner | None = None
    """An optional object, over
    two lines."""
    some_number: float = Field(default=0.5, gt=0, lt=1)
    """Between."""
    word: Annotated[
        str, Field(pattern=r"^\d'$", json_schema_extra=looks_like("one digit and a quote"))
    ] = "1'"
    """With a message."""
    bare: str = Field(default="a", pattern="^a$")
    """Without one."""
    kind: Literal["only"] = "only"
    """One value."""
    labels: dict[str, int] = Field(default_factory=dict)
    """A map."""
    inners: list[Inner] = Field(default_factory=list, json_schema_extra=list_map("name"))
    """A list map."""
    words: list[str] = Field(default_factory=list, json_schema_extra=SET)
    """A set."""
    rest: list[str] = Field(default_factory=list)
    """A list."""
    quantity: str | None = Field(default=None, json_schema_extra=INT_OR_STRING)
    """A quantity."""


def field(name: str) -> dict[str, Any]:
    found: dict[str, Any] = structural_schema(Everything)["properties"][name]
    return found


def test_a_reference_is_inlined_under_the_fields_own_words() -> None:
    assert field("inner") == {
        "type": "object",
        "description": "An optional object, over two lines.",
        "properties": {"name": {"type": "string", "description": "Its name."}},
        "required": ["name"],
    }


def test_names_are_those_of_the_wire() -> None:
    assert "someNumber" in structural_schema(Everything)["properties"]


def test_exclusive_bounds_are_flags() -> None:
    assert field("someNumber") == {
        "type": "number",
        "description": "Between.",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 1,
        "exclusiveMaximum": True,
    }


def test_a_pattern_with_a_message_becomes_a_rule_and_one_without_stays() -> None:
    assert field("word")["x-kubernetes-validations"] == [
        {"rule": "self.matches('^\\\\d\\'$')", "message": "one digit and a quote"}
    ]
    assert "pattern" not in field("word")
    assert field("bare")["pattern"] == "^a$"


def test_one_value_is_an_enumeration() -> None:
    assert field("kind")["enum"] == ["only"]


def test_a_map_has_the_schema_of_its_values() -> None:
    assert field("labels")["additionalProperties"] == {"type": "integer"}


@pytest.mark.parametrize(
    ("name", "markers"),
    [
        ("inners", {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
        ("words", {"x-kubernetes-list-type": "set"}),
        ("rest", {"x-kubernetes-list-type": "atomic"}),
    ],
)
def test_lists_have_their_markers(name: str, markers: dict[str, Any]) -> None:
    found = {k: v for k, v in field(name).items() if k.startswith("x-")}
    assert found == markers


def test_a_quantity_is_a_number_or_a_string() -> None:
    assert field("quantity") == {
        "description": "A quantity.",
        "x-kubernetes-int-or-string": True,
        "anyOf": [{"type": "integer"}, {"type": "string"}],
    }


def test_a_rule_blames_its_field() -> None:
    assert rules(rule("a", "b", field=".c"))["x-kubernetes-validations"] == [
        {"rule": "a", "message": "b", "fieldPath": ".c"}
    ]


class Union(ApiValue):
    """Two types at once."""

    either: int | str
    """Either."""


class Open(ApiValue):
    """Anything."""

    anything: Any
    """Anything."""


class Pair(ApiValue):
    """A tuple."""

    pair: tuple[int, str]
    """A pair."""


class Loop(ApiValue):
    """Itself."""

    loop: Loop | None = None
    """Itself."""


class Object(ApiValue):
    """No properties."""

    bag: dict[str, Any]
    """A bag."""


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        (Union, "Union.either"),
        (Open, "Open.anything"),
        (Pair, "Pair.pair"),
        (Loop, "Loop.loop"),
        (Object, "Object.bag"),
    ],
)
def test_a_type_without_a_structural_schema_is_refused_where_it_stands(
    kind: type[ApiValue], where: str
) -> None:
    with pytest.raises(UnsupportedTypeError, match=where):
        structural_schema(kind)
