from __future__ import annotations

from decimal import Decimal

import pytest

from support.planning import GIB, taint
from terrace.planner.nodes import NodeFacts, format_bytes, node_facts, parse_bytes, parse_quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", "0"),
        ("500m", "0.5"),
        ("4", "4"),
        ("1.5Gi", str(3 * GIB // 2)),
        ("1e3", "1000"),
        ("12E2", "1200"),
        ("2E", "2000000000000000000"),
        ("1Ki", "1024"),
        (".5", "0.5"),
        ("5.", "5"),
        ("100n", "0.0000001"),
    ],
)
def test_a_quantity_has_the_value_that_kubernetes_gives_it(text: str, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize(
    "text", ["", "-1", "1kB", "1 Gi", "Gi", ".", "1e", "0x1", "\u0661", "1e999", "9" * 40]
)
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a quantity"):
        parse_quantity(text)


def test_bytes_are_rounded_up() -> None:
    assert parse_bytes("1500m") == 2


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (20 << 20, "20.0 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (GIB * 3 // 2, "1.5 GiB"),
        (1 << 60, "1024.0 PiB"),
    ],
)
def test_bytes_for_people_have_a_unit_and_one_decimal(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_a_node_is_projected_to_what_planning_needs() -> None:
    manifest = {
        "metadata": {"name": "a", "labels": {"zone": "x"}},
        "spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}], "unschedulable": True},
        "status": {
            "allocatable": {"cpu": "1930m", "memory": "24Gi"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
    assert node_facts(manifest) == NodeFacts(
        "a", {"zone": "x"}, (taint("gpu"),), True, True, 1930, 24 * GIB
    )


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"metadata": None, "spec": None, "status": None},
        {"metadata": {"name": "a"}, "status": {"allocatable": {"cpu": "many", "memory": None}}},
    ],
)
def test_a_node_that_says_little_or_nonsense_is_not_ready_and_empty(
    manifest: dict[str, object],
) -> None:
    facts = node_facts(manifest)
    assert (facts.ready, facts.cpu_millis, facts.memory_bytes) == (False, 0, 0)
