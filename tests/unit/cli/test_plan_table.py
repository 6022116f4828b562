"""What ``terrace plan`` prints, for plans made by hand: numbers are the planner's own business."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from support.controller_objects import facts, offload_plan
from support.planning import llama_8b_facts, node, pool
from terrace.api.conditions import Reason
from terrace.api.names import Key
from terrace.cli.bytes_by_place import places
from terrace.cli.plan_json import plan_document
from terrace.cli.plan_table import TABLE_WIDTH, count_words, plan_lines, speed_words
from terrace.cli.profiles import PROFILES, Row, Target
from terrace.cli.screen import wrapped
from terrace.planner.inputs import Cluster
from terrace.planner.placement import Placement
from terrace.planner.plan import DevicePlan, OffloadPlan
from terrace.planner.rooms import NoPlacement

GOLDEN = Path(__file__).parent / "golden"
GIB, MIB = 1 << 30, 1 << 20
POOL = pool()
TARGET = Target(
    "a node: 16 CPUs, 64.0 GiB", Key("default", "default"), POOL, Cluster((node(),)), ("a note",)
)


def on_host(**changes: Any) -> OffloadPlan:
    plain: dict[str, Any] = {
        "weights_bytes": 4 * GIB,
        "kv_bytes": GIB,
        "compute_bytes": 128 * MIB,
        "tiers_bytes": 256 * MIB,
        "memory_request_bytes": 6 * GIB,
        "memory_limit_bytes": 6 * GIB,
        "reasons": ("context 2,048 tokens: what the model was trained for", "a reason " * 30),
    }
    return offload_plan(**plain | changes)


def on_device() -> OffloadPlan:
    device = DevicePlan(
        accelerator="nvidia",
        backend="cuda",
        product="H100",
        resource="nvidia.com/gpu",
        count=2,
        memory_bytes=24 * GIB,
        device_layers=25,
        layers=32,
        expert_layers_on_host=3,
        weights_bytes=3 * GIB,
        kv_bytes=GIB // 2,
        compute_bytes=200 * MIB,
        margin_bytes=640 * MIB,
    )
    return on_host(device=device, host_weights_bytes=GIB)


def on_disk() -> OffloadPlan:
    return on_host(weights="paged", disk_bytes=16 * GIB, memory_request_bytes=3 * GIB)


def rows() -> tuple[Row, ...]:
    flavor = POOL.flavors[0]
    lacks = NoPlacement(Reason.NO_NODE_FITS, "flavor cpu: 1.5 GiB are missing; so", 3 * GIB // 2)
    refused = NoPlacement(Reason.NO_DEVICE, "flavor cpu has accelerator cpu")
    results: dict[str, Placement | NoPlacement] = {
        "Auto": Placement(flavor, on_device(), 87.3),
        "DeviceOnly": refused,
        "Balanced": Placement(flavor, on_host()),
        "HostHeavy": lacks,
        "DiskHeavy": Placement(flavor, on_disk()),
    }
    return tuple(Row(profile, profile == "Auto", results[profile]) for profile in PROFILES)


def text(width: int, *of: Row) -> str:
    lines = [
        each
        for line in plan_lines(llama_8b_facts(), TARGET, of or rows(), width)
        for each in ([line.text] if line.is_table else wrapped(line.text, width, line.indent))
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


@pytest.mark.parametrize("width", [50, 80, 120])
def test_the_table_reads_as_it_did(width: int) -> None:
    path = GOLDEN / f"plan_{width}.txt"
    if os.environ.get("TERRACE_GOLDEN") == "write":
        path.write_text(text(width))
    assert text(width) == path.read_text()


@pytest.mark.parametrize("width", [44, 60, TABLE_WIDTH - 1, TABLE_WIDTH, 100])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert max(len(line) for line in text(width).splitlines()) <= width


def test_where_nothing_fits_it_is_said_once() -> None:
    lacks = NoPlacement(Reason.NO_NODE_FITS, "too small", GIB)
    none = [Row(profile, profile == "Auto", lacks) for profile in PROFILES]
    said = text(100, *none)
    assert said.count("too small") == 1
    assert "No profile fits: too small" in said
    assert "Why" not in said


@pytest.mark.parametrize("plan", [on_host(), on_device(), on_disk()])
def test_the_parts_of_the_host_are_its_limit(plan: OffloadPlan) -> None:
    (host,) = (place for place in places(plan) if place.name == "host")
    assert host.total_bytes == plan.memory_limit_bytes
    assert host.other_bytes >= plan.base_bytes


def test_all_weights_are_somewhere() -> None:
    for plan in (on_host(), on_device(), on_disk()):
        assert sum(place.weights_bytes for place in places(plan)) == plan.weights_bytes


def test_the_document_for_programs_names_every_profile() -> None:
    document = plan_document("m.gguf", facts(), TARGET, rows())
    profiles = {each["profile"]: each for each in document["profiles"]}
    assert list(profiles) == list(PROFILES)
    assert document["version"] == "terrace.plan/v1"
    auto, refused = profiles["Auto"], profiles["HostHeavy"]
    assert (auto["chosen"], auto["fits"], auto["tokensPerSecond"]) == (True, True, 87.3)
    assert auto["plan"]["digest"] == on_device().digest
    assert [place["place"] for place in auto["places"]] == ["device", "host"]
    assert refused["problem"] == {
        "reason": "NoNodeFits",
        "message": "flavor cpu: 1.5 GiB are missing; so",
        "missingBytes": 3 * GIB // 2,
    }


@pytest.mark.parametrize(
    ("count", "words"), [(2_361_408, "2.4 M"), (8_030_261_312, "8.0 B"), (10**12, "1.0 T")]
)
def test_parameters_are_told_as_people_tell_them(count: int, words: str) -> None:
    assert count_words(count) == words


def test_no_cell_touches_its_neighbour() -> None:
    plan = on_host(compute_bytes=1013 * MIB + MIB // 2, kv_bytes=1023 * GIB)
    said = text(100, Row("Auto", True, Placement(POOL.flavors[0], plan)))
    (line,) = (each for each in said.splitlines() if each.startswith("* Auto"))
    assert " ".join(line.split()[3:]) == "4.0 GiB 1.0 TiB 1.0 GiB 256.0 MiB - 1.0 TiB"


@pytest.mark.parametrize(
    ("speed", "words"), [(0.27, "0.3"), (9.96, "10.0"), (87.3, "87"), (1234.0, "1,200")]
)
def test_a_speed_is_told_as_the_estimate_it_is(speed: float, words: str) -> None:
    assert speed_words(speed) == words
