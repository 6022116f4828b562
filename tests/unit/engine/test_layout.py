"""Which layout of KV cells suits whom; the costs behind it were measured (see the module)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from terrace_runtime.engine.layout import Demand, demand_of, suits_unified


@dataclass
class Held:
    """The part of a Sequence that counts here."""

    tokens: list[int]
    keys: list[bytes] = field(default_factory=list)


def same(sequences: int, shared: int, own: int) -> Demand:
    return Demand(sequences, sequences * (shared + own), shared + sequences * own)


def test_a_common_beginning_is_counted_once() -> None:
    common = [b"a", b"b"]
    sequences = [Held([0] * 20, common), Held([0] * 30, [*common, b"c"]), Held([0] * 10, [b"x"])]
    assert demand_of(cast("Any", sequences), 8) == Demand(3, 60, 60 - 2 * 8)


def test_nobody_wants_no_change() -> None:
    nobody = demand_of([], 8)
    assert not suits_unified(nobody, is_unified=False)
    assert suits_unified(nobody, is_unified=True)


@pytest.mark.parametrize(
    ("demand", "wanted"),
    [
        (same(16, 1500, 30), True),
        (same(16, 1500, 150), True),
        (same(8, 2000, 100), True),
        (same(16, 0, 1500), False),
        (same(16, 200, 1500), False),
        (same(8, 0, 4000), False),
    ],
)
def test_sharing_decides(demand: Demand, wanted: bool) -> None:  # noqa: FBT001 - a parameter
    assert suits_unified(demand, is_unified=False) == wanted


@pytest.mark.parametrize("is_unified", [False, True])
@pytest.mark.parametrize(
    "demand",
    [
        same(1, 0, 8000),  # who is alone has the same cells either way
        same(16, 0, 32),  # nothing to gain with so few
        same(4, 0, 1500),  # four at once: about as fast in both
        same(16, 700, 200),  # near the line
    ],
    ids=["alone", "short", "few", "near"],
)
def test_what_is_not_clear_changes_nothing(
    demand: Demand,
    is_unified: bool,  # noqa: FBT001 - a parameter
) -> None:
    assert suits_unified(demand, is_unified=is_unified) == is_unified


def test_different_conversations_go_back_to_split_cells() -> None:
    assert not suits_unified(same(16, 0, 1500), is_unified=True)
    assert not suits_unified(same(16, 0, 128), is_unified=True)
