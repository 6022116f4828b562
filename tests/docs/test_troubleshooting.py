"""docs/troubleshooting.md has a section for every reason, code and exit code that there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest

from terrace.api.conditions import ConditionType, Reason
from terrace_runtime.contract import FetchFailure, names

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
FETCH_REASONS = get_args(FetchFailure.model_fields["reason"].annotation)
CALM = {"Ready", "Placed", "Cached", "ReplicasReady", "NotStalled", "Done", "Progressing"}
"""Reasons that need nothing; every other section says how to see it and the way out."""
KILLED = 128 + 9
RAISING = {"ApiError": 2, "unavailable": 1, "error_event": 1}
"""Function -> where its code is, unless it is named."""


def sections() -> dict[str, str]:
    """Heading of the third level -> text below it."""
    below = re.split(r"^##+ ", PAGE, flags=re.MULTILINE)[1:]
    marks = re.findall(r"^(##+) ", PAGE, flags=re.MULTILINE)
    thirds = [part for part, mark in zip(below, marks, strict=True) if mark == "###"]
    return {title: text for title, _, text in (part.partition("\n") for part in thirds)}


def test_every_reason_has_a_section_and_there_are_no_others() -> None:
    assert sorted(sections()) == sorted({*map(str, Reason), *FETCH_REASONS})


@pytest.mark.parametrize("reason", sorted({*map(str, Reason), *FETCH_REASONS} - CALM))
def test_a_section_says_what_it_means_how_to_see_it_and_the_way_out(reason: str) -> None:
    meaning, see, way_out = re.split(
        r"^- \*\*(?:See|Way out):\*\* ", sections()[reason], flags=re.MULTILINE
    )
    assert len(meaning.split()) > 4
    assert len(see.split()) > 1
    assert way_out.strip()


def test_every_condition_is_in_the_table() -> None:
    assert re.findall(r"^\| `(\w+)` \| .*\?", PAGE, flags=re.MULTILINE) == list(
        map(str, ConditionType)
    )


def rows_below(heading: str, until: str) -> Iterator[str]:
    """First cells of the tables between two lines."""
    text = PAGE[PAGE.index(f"\n{heading}\n") : PAGE.index(f"\n{until}")]
    for row in re.findall(r"^\| ([^|]+) \|", text, flags=re.MULTILINE):
        yield from re.findall(r"`(\w+)`", row)


def codes_in(folder: str) -> set[str]:
    """Constants that become the ``code`` of an error."""
    found: set[str] = set()
    for path in (ROOT / folder).glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            position = RAISING.get(call.func.id)
            if position is None:
                continue
            given = [each.value for each in call.keywords if each.arg == "code"]
            for part in given or call.args[position : position + 1]:
                words = {each.value for each in ast.walk(part) if isinstance(each, ast.Constant)}
                found |= {word for word in words if isinstance(word, str)}
    return found


def test_every_error_code_of_the_gateway_is_explained() -> None:
    rows = set(rows_below("From the gateway:", "From a replica"))
    assert rows == codes_in("operator/terrace/gateway")


def test_every_error_code_of_a_replica_is_explained() -> None:
    rows = set(rows_below("From a replica, passed on as they are:", "## How a replica ended"))
    # Codes that are chosen by a status or by a message.
    by_hand = {"context_length_exceeded", "not_found", "method_not_allowed"}
    assert rows - by_hand == codes_in("runtime_image/terrace_runtime/api")
    source = (ROOT / "runtime_image/terrace_runtime/api/errors.py").read_text()
    assert all(f'"{code}"' in source for code in by_hand)


def test_every_exit_code_is_explained() -> None:
    text = PAGE[PAGE.index("\n## How a replica ended") :]
    rows = set(map(int, re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)))
    codes = {getattr(names, name) for name in dir(names) if name.startswith("EXIT_")}
    assert rows == codes | {KILLED}
