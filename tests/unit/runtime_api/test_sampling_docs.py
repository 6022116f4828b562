"""docs/sampling.md says what the code does."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le
from pydantic import AliasChoices

from terrace_runtime.api.sampling_fields import MAX_CHOICE_TEXTS, SamplingFields
from terrace_runtime.backend.gbnf import MAX_RULES
from terrace_runtime.backend.grammar import MAX_GRAMMAR_CHARS, MAX_PROPERTIES
from terrace_runtime.contract import SamplingDefaults
from terrace_runtime.engine.request import SamplingParams
from terrace_runtime.engine.sampling import BOUNDS

PAGE = (Path(__file__).parents[3] / "docs/sampling.md").read_text()
GRAMMARS = (
    "response_format",
    "json_schema",
    "guided_json",
    "grammar",
    "guided_grammar",
    "guided_regex",
    "guided_choice",
    "structured_outputs",
)


def rows() -> dict[str, list[str]]:
    """The cells of each row by the names in its first cell."""
    found = {}
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            for name in re.findall(r"`(\w+)`", cells[0]):
                found[name] = cells[1:]
    return found


def names_of(field: str) -> set[str]:
    alias = SamplingFields.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return {str(choice) for choice in alias.choices}
    return {str(alias or field)}


def bounds_of(field: str) -> str | None:
    """``low to high`` as pydantic enforces it; None for a field without plain numbers."""
    info = SamplingFields.model_fields[field]
    metadata: list[Any] = list(info.metadata)
    for part in getattr(info.annotation, "__args__", ()):
        metadata += getattr(part, "__metadata__", ())
        metadata += [item for one in metadata for item in getattr(one, "metadata", ())]
    low = next((f"{one.ge:g}" for one in metadata if isinstance(one, Ge)), None) or next(
        (f"above {one.gt:g}" for one in metadata if isinstance(one, Gt)), None
    )
    high = next((one.le for one in metadata if isinstance(one, Le)), None)
    return None if low is None or high is None else f"{low} to {high:.10g}"


def test_every_field_is_listed_and_nothing_else() -> None:
    known = set().union(*(names_of(field) for field in SamplingFields.model_fields))
    assert set(rows()) == known
    assert set(GRAMMARS) <= known


def test_bounds_are_those_that_are_enforced() -> None:
    engine = {name: (low, high) for name, low, high in BOUNDS}
    checked = 0
    for field in SamplingFields.model_fields:
        bounds = bounds_of(field)
        if bounds is None or field == "seed":
            continue
        for name in names_of(field):
            assert rows()[name][0] == bounds, name
        low, high = engine[field]
        given = bounds.removeprefix("above ").split(" to ")
        assert low <= max(float(given[0]), 0 if field == "top_k" else -1e9)
        assert high == float(given[1])
        checked += 1
    assert checked == len(BOUNDS)


def test_defaults_are_those_that_are_used() -> None:
    by_model = SamplingDefaults().model_dump()
    by_engine = asdict(SamplingParams())
    for field, *_ in BOUNDS:
        value = by_model.get(field, by_engine[field])
        shown = f"model [{value}]" if field in by_model else str(value)
        assert rows()[field][1] == shown, field
    breakers = " ".join(f"`{text}`" for text in by_engine["dry_sequence_breakers"])
    assert rows()["dry_sequence_breakers"][1] == breakers.replace("\n", "\\n")


def test_the_limits_of_grammars_are_those_that_are_enforced() -> None:
    for number in (
        MAX_GRAMMAR_CHARS,
        MAX_CHOICE_TEXTS,
        MAX_RULES,
        MAX_PROPERTIES,
    ):
        assert f" {number:,} " in PAGE.replace("\n", " "), number
