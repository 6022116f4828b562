from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import example, given
from hypothesis import strategies as st

from support.planning import GIB, demo_facts, llama_8b_facts, model, node, place, pool
from terrace.api.offload import overridden
from terrace.api.quantity import parse_bytes
from terrace.planner.footprint import footprint
from terrace.planner.geometry import Shape
from terrace.planner.placement import Placement
from terrace.planner.plan import OffloadPlan
from terrace.planner.rooms import NoPlacement
from terrace.planner.sticky import Keep, decide, inputs_digest
from terrace.planner.tiers import NO_TIERS, Tiers
from terrace_runtime.contract import LayerRun, ModelFacts

if TYPE_CHECKING:
    from random import Random

    from terrace.api.model import ModelSpec
    from terrace.api.pool import PoolSpec
    from terrace.planner.nodes import NodeFacts

runs = st.builds(
    LayerRun,
    count=st.integers(1, 80),
    weight_bytes=st.integers(0, 10**9),
    expert_bytes=st.sampled_from([0, 1]),
    kv_heads=st.integers(0, 16),
    key_length=st.sampled_from([64, 128, 192, 256]),
    value_length=st.sampled_from([64, 128]),
    window=st.sampled_from([0, 0, 1024]),
)
facts = st.builds(
    demo_facts,
    context_length=st.integers(64, 1 << 20),
    embedding_length=st.integers(64, 16384),
    feed_forward_length=st.integers(0, 65536),
    vocabulary=st.integers(1, 300_000),
    layers=st.lists(runs, min_size=1, max_size=3).map(tuple),
    repacked_bytes=st.integers(0, 10**10),
)
kv_types = st.sampled_from(["f16", "q8_0", "q4_0"])
tiers = st.builds(
    Tiers,
    weights=st.sampled_from(["mapped", "loaded", "paged"]),
    is_unified=st.booleans(),
    block_tokens=st.integers(8, 1024),
    host_bytes=st.sampled_from([0, 1 << 26, 1 << 34]),
    disk_bytes=st.sampled_from([0, 1 << 36]),
    prefetch_bytes=st.sampled_from([0, 1 << 26]),
)
shapes = st.builds(
    Shape,
    context_tokens=st.integers(64, 1 << 20),
    parallel=st.integers(1, 255),
    ubatch_tokens=st.sampled_from([128, 512, 2048]),
    kv_key_type=kv_types,
    kv_value_type=kv_types,
    guessed_tokens=st.integers(0, 16),
    tiers=st.just(NO_TIERS) | tiers,
)
offloads = st.fixed_dictionaries(
    {},
    optional={
        "profile": st.sampled_from(["Auto", "Balanced", "HostHeavy", "DiskHeavy", "DeviceOnly"]),
        "spillThreshold": st.sampled_from(["0", "16Mi", "512Mi", "8Gi"]),
        "maxDisk": st.sampled_from(["0", "64Mi", "64Gi"]),
        "prefetchWindow": st.sampled_from(["1Mi", "128Mi"]),
        "kvBlockTokens": st.integers(8, 1024),
        "checkpointTokens": st.integers(16, 1_048_576),
        "checkpointCount": st.integers(0, 4096),
        "kvLayout": st.sampled_from(["Auto", "Split", "Unified"]),
        "disk": st.sampled_from([{}, {"ephemeral": True}, {"claimName": "a"}]),
    },
)
specs = st.builds(
    lambda length, parallel, offload: model(
        context={"length": length, "parallel": parallel}, offload=offload
    ),
    st.none() | st.integers(64, 4096),
    st.none() | st.integers(1, 255),
    st.just({}) | offloads,
)
node_lists = st.lists(
    st.builds(
        lambda number, memory, cpu, ready, labels: node(
            f"node-{number}", memory_bytes=memory, cpu_millis=cpu, ready=ready, labels=labels
        ),
        st.integers(0, 10**6),
        st.integers(0, 64 * GIB),
        st.integers(0, 64_000),
        st.booleans(),
        st.sampled_from([{}, {"disk": "ssd"}]),
    ),
    max_size=6,
    unique_by=lambda each: each.name,
)
pools = st.sampled_from(
    [
        pool(),
        pool({"name": "ssd", "nodeSelector": {"disk": "ssd"}}, {"name": "cpu"}),
        pool({"name": "cpu", "host": {"cpu": "500m", "memory": "4Gi"}}),
        pool(offload={"kvTypes": {"key": "q8_0", "value": "q8_0"}}),
        pool(offload={"profile": "DiskHeavy", "spillThreshold": "256Mi"}),
    ]
)
models_facts = st.sampled_from([demo_facts(), llama_8b_facts()])


@given(facts, shapes, st.integers(0, 1 << 16), st.integers(0, 64))
@example(demo_facts(), Shape(64, 124, 128, "f16", "f16"), 0, 4)  # 128 divide the step, 124 do not
def test_more_context_or_more_sequences_never_need_less(
    model_facts: ModelFacts, shape: Shape, tokens: int, sequences: int
) -> None:
    more = replace(
        shape,
        context_tokens=shape.context_tokens + tokens,
        parallel=shape.parallel + sequences,
    )
    small, large = footprint(model_facts, shape), footprint(model_facts, more)
    assert small.kv_bytes <= large.kv_bytes
    assert small.request_bytes <= large.request_bytes
    assert small.limit_bytes <= large.limit_bytes


@given(facts, shapes)
def test_parts_are_not_negative_and_a_limit_is_above_its_request(
    model_facts: ModelFacts, shape: Shape
) -> None:
    size = footprint(model_facts, shape)
    assert 0 <= size.repacked_bytes <= size.weights_bytes
    assert 0 < size.anonymous_bytes < size.request_bytes < size.limit_bytes


@given(facts, shapes)
def test_quantised_cells_never_need_more(model_facts: ModelFacts, shape: Shape) -> None:
    sizes = [
        footprint(model_facts, replace(shape, kv_key_type=kind, kv_value_type=kind)).kv_bytes
        for kind in ("q4_0", "q8_0", "f16")
    ]
    assert sizes == sorted(sizes)


@given(models_facts, specs, pools, node_lists, st.integers(0, 32 * GIB))
def test_a_plan_fits_a_node_of_its_flavor_and_keeps_what_the_user_wrote(
    model_facts: ModelFacts, spec: ModelSpec, pool_spec: PoolSpec, nodes: list[NodeFacts], used: int
) -> None:
    in_use = {each.name: used for each in nodes}
    result = place(model_facts, spec, pool_spec, nodes, in_use)
    if isinstance(result, NoPlacement):
        assert result.message
        assert result.missing_bytes >= 0
        return
    plan, flavor = result.plan, result.flavor
    assert any(
        each.ready
        and flavor.node_selector.items() <= each.labels.items()
        and each.cpu_millis >= plan.cpu_millis
        and each.memory_bytes - used >= plan.memory_limit_bytes
        for each in nodes
    )
    context = spec.context
    assert context.length in {None, plan.context_tokens}
    assert context.parallel in {None, plan.parallel}
    assert plan.context_tokens <= model_facts.context_length
    assert plan.memory_request_bytes <= plan.memory_limit_bytes
    written = overridden(pool_spec.offload, spec.offload)
    if written.spill_threshold is not None:
        assert plan.host_bytes == parse_bytes(written.spill_threshold)
    if written.max_disk is not None:
        assert plan.disk_bytes == parse_bytes(written.max_disk)
    assert (plan.volume is None) == (plan.disk_bytes == 0)
    assert plan.disk_bytes == 0 or plan.prefetch_bytes <= plan.host_bytes
    assert (plan.host_bytes == 0) == (plan.tiers_bytes == 0)
    assert plan.tiers_bytes >= plan.host_bytes


def some_plan(threads: int = 1, reasons: tuple[str, ...] = ()) -> OffloadPlan:
    result = place(demo_facts(), model(), pool(), [node()], {})
    assert isinstance(result, Placement)
    return result.plan.model_copy(update={"threads": threads, "reasons": reasons})


@given(st.integers(1, 256), st.lists(st.text(max_size=20), max_size=3), st.randoms())
def test_a_digest_survives_json_and_any_order_of_keys(
    threads: int, reasons: list[str], random: Random
) -> None:
    plan = some_plan(threads, tuple(reasons))
    again = OffloadPlan.model_validate_json(plan.model_dump_json())
    assert again == plan
    items = list(plan.model_dump(mode="json").items())
    random.shuffle(items)
    shuffled = OffloadPlan.model_validate_json(json.dumps(dict(items)))
    assert plan.digest == again.digest == shuffled.digest
    assert (plan.digest == some_plan().digest) == (threads == 1)


@given(models_facts, specs, pools, node_lists, node_lists)
def test_nodes_that_come_and_go_restart_nothing(
    model_facts: ModelFacts,
    spec: ModelSpec,
    pool_spec: PoolSpec,
    before: list[NodeFacts],
    after: list[NodeFacts],
) -> None:
    current = place(model_facts, spec, pool_spec, before, {})
    fresh = place(model_facts, spec, pool_spec, after, {})
    if isinstance(current, NoPlacement) or isinstance(fresh, NoPlacement):
        return
    inputs = inputs_digest(model_facts, spec, pool_spec, current.plan.flavor)
    verdict = decide(current.plan, current.plan.inputs, fresh.plan, inputs)
    assert isinstance(verdict, Keep)
    assert verdict.plan == current.plan


@given(st.integers(1, 64), st.integers(0, 10**9))
def test_an_operator_that_counts_otherwise_restarts_nothing(threads: int, more_bytes: int) -> None:
    current = some_plan()
    upgraded = current.model_copy(
        update={"threads": threads, "compute_bytes": current.compute_bytes + more_bytes}
    )
    assert isinstance(decide(current, current.inputs, upgraded, upgraded.inputs), Keep)
