"""The manifests that ``terrace plan -o yaml`` prints get exactly the plan that it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from support.planning import GIB, demo_facts, llama_8b_facts
from terrace.api.model import ModelSpec
from terrace.api.names import Key
from terrace.api.pool import PoolSpec
from terrace.cli.bytes_by_place import places
from terrace.cli.node_shape import Devices, NodeShape
from terrace.cli.plan_spec import Wanted, model_name, model_spec
from terrace.cli.plan_yaml import as_yaml, manifests
from terrace.cli.profiles import Row, chosen_row, plan_profiles
from terrace.cli.target import shape_target
from terrace.controller.parse import parse_spec
from terrace.planner.accelerators import built_in
from terrace.planner.inputs import ModelInputs
from terrace.planner.placement import Placement, place

if TYPE_CHECKING:
    from terrace_runtime.contract import ModelFacts

FACTS = st.sampled_from([demo_facts(), llama_8b_facts(), demo_facts(pooling="mean")])
KV_TYPES = st.sampled_from(["f16", "q8_0", "q4_0"])
QUANTITIES = st.sampled_from([None, "0", "64Mi", "1Gi", "1.5Gi", "2000000000", "20Gi"])
DEVICES = st.one_of(
    st.none(),
    st.builds(
        Devices,
        accelerator=st.sampled_from(["nvidia", "amd", "intel-gpu", "ascend", "moore-threads"]),
        count=st.integers(1, 4),
        memory_bytes=st.integers(GIB, 96 * GIB),
        product=st.sampled_from(["", "H100-80GB", "L4"]),
    ),
)
SHAPES = st.builds(
    NodeShape,
    cpu_millis=st.integers(500, 128_000),
    memory_bytes=st.integers(256 << 20, 256 * GIB),
    devices=DEVICES,
)
WANTED = st.builds(
    Wanted,
    source=st.sampled_from(["m.gguf", "/a b/Model_X.Q4_K_M.gguf", "hf://o/r:Q4_K_M"]),
    context=st.one_of(st.none(), st.integers(64, 200_000)),
    parallel=st.one_of(st.none(), st.integers(1, 64)),
    profile=st.sampled_from([None, "auto", "DeviceOnly", "Balanced", "HostHeavy", "diskheavy"]),
    kv_types=st.one_of(st.none(), KV_TYPES, st.builds("{},{}".format, KV_TYPES, KV_TYPES)),
    max_disk=QUANTITIES,
    spill_threshold=QUANTITIES,
)


def planned(facts: ModelFacts, wanted: Wanted, shape: NodeShape) -> tuple[Any, ...]:
    target = shape_target(shape, "a node", built_in())
    spec = model_spec(wanted, target.pool_key.name, facts.digest)
    return target, spec, plan_profiles(ModelInputs(facts, spec), target)


@settings(deadline=None, max_examples=60)
@given(FACTS, WANTED, SHAPES)
def test_what_is_printed_is_planned_the_same(
    facts: ModelFacts, wanted: Wanted, shape: NodeShape
) -> None:
    target, spec, rows = planned(facts, wanted, shape)
    shown = chosen_row(rows).result
    key = Key("default", model_name(wanted.source))
    text = as_yaml(manifests(key, spec, target.pool_key, target.pool), ["a comment"])
    pool, model = yaml.safe_load_all(text)
    again = place(
        ModelInputs(facts, parse_spec(ModelSpec, model)),
        parse_spec(PoolSpec, pool),
        target.cluster,
    )
    assert again == shown
    if isinstance(shown, Placement):
        assert isinstance(again, Placement)
        assert again.plan.digest == shown.plan.digest


@settings(deadline=None, max_examples=60)
@given(FACTS, WANTED, SHAPES)
def test_the_bytes_of_every_row_add_up(facts: ModelFacts, wanted: Wanted, shape: NodeShape) -> None:
    rows: tuple[Row, ...] = planned(facts, wanted, shape)[2]
    assert sum(row.is_chosen for row in rows) == 1
    for row in rows:
        if not isinstance(row.result, Placement):
            assert row.result.message
            continue
        plan = row.result.plan
        found = {place.name: place for place in places(plan)}
        assert found["host"].total_bytes == plan.memory_limit_bytes
        assert all(
            part >= 0
            for place in found.values()
            for part in (place.weights_bytes, place.kv_bytes, place.tiers_bytes, place.other_bytes)
        )
        # An output head that is the embedding too lies on both sides.
        assert sum(place.weights_bytes for place in found.values()) >= plan.weights_bytes
        if plan.device is not None:
            room = plan.device.memory_bytes * plan.device.count
            assert found["device"].total_bytes <= room


@given(st.text(max_size=80))
def test_a_name_is_made_of_any_source(source: str) -> None:
    name = model_name(source)
    assert 1 <= len(name) <= 40
    assert name[0].isalpha()
    assert name.isascii()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not name.endswith("-")
