from __future__ import annotations

from typing import Any

import pytest

from support.model_shapes import facts as shape_facts
from support.planning import GIB, MIB, demo_facts, llama_8b_facts, model, node, place, pool, taint
from terrace.api.conditions import Reason
from terrace.planner.footprint import footprint
from terrace.planner.geometry import Shape
from terrace.planner.inputs import unbound
from terrace.planner.placement import Placement
from terrace.planner.rooms import NoPlacement
from terrace_runtime.contract import LayerRun


def placed(*arguments: Any) -> Placement:
    result = place(*arguments)
    assert isinstance(result, Placement), result
    return result


def refused(*arguments: Any) -> NoPlacement:
    result = place(*arguments)
    assert isinstance(result, NoPlacement), result
    return result


def test_defaults_are_the_models_own_context_and_four_sequences() -> None:
    plan = placed(demo_facts(), model(), pool(), [node()], {}).plan
    assert (plan.context_tokens, plan.parallel) == (4096, 4)
    assert (plan.kv_key_type, plan.kv_value_type) == ("f16", "f16")


def test_a_long_context_is_not_the_default() -> None:
    plan = placed(llama_8b_facts(), model(), pool(), [node()], {}).plan
    assert plan.context_tokens == 8192
    assert any("131,072" in reason for reason in plan.reasons)


def test_reasons_say_the_numbers() -> None:
    plan = placed(demo_facts(), model(), pool(), [node()], {}).plan
    assert any(
        reason.startswith("KV cells: 4 sequences x 4,096 tokens x 1,280 B = 20.0 MiB")
        for reason in plan.reasons
    )
    assert any("page-cache floor" in reason for reason in plan.reasons)


def limit(context: int, parallel: int) -> int:
    """Memory limit of Llama 8B in this shape."""
    return footprint(llama_8b_facts(), Shape(context, parallel, 512, "f16", "f16")).limit_bytes


def test_defaults_shrink_parallel_first_and_then_context_with_a_reason_for_each_step() -> None:
    order = [(8192, 4), (8192, 2), (8192, 1), (4096, 1), (2048, 1)]
    for wider, (context, parallel) in zip([None, *order], order, strict=False):
        # A byte less than the step before needs, so that this one is the first that fits.
        memory = limit(*wider) - 1 if wider else limit(context, parallel)
        plan = placed(llama_8b_facts(), model(), pool(), [node(memory_bytes=memory)], {}).plan
        assert (plan.context_tokens, plan.parallel) == (context, parallel)
    assert [reason for reason in plan.reasons if "not fit" in reason] == [
        "parallel 4 does not fit: 2",
        "parallel 2 does not fit: 1",
        "context 8,192 tokens do not fit: 4,096",
        "context 4,096 tokens do not fit: 2,048",
        "no host tier: 64.0 MiB do not fit",
    ]
    last = [node(memory_bytes=limit(2048, 1) - 1)]
    assert refused(llama_8b_facts(), model(), pool(), last, {}).missing_bytes == 1


def test_only_what_is_left_open_shrinks() -> None:
    spec, memory = model(context={"length": 8192}), limit(8192, 1)
    plan = placed(llama_8b_facts(), spec, pool(), [node(memory_bytes=memory)], {}).plan
    assert (plan.context_tokens, plan.parallel) == (8192, 1)
    refused(llama_8b_facts(), spec, pool(), [node(memory_bytes=memory - 1)], {})
    spec, memory = model(context={"parallel": 4}), limit(2048, 4)
    plan = placed(llama_8b_facts(), spec, pool(), [node(memory_bytes=memory)], {}).plan
    assert (plan.context_tokens, plan.parallel) == (2048, 4)
    refused(llama_8b_facts(), spec, pool(), [node(memory_bytes=memory - 1)], {})


def test_what_the_user_wrote_is_never_changed() -> None:
    spec = model(context={"length": 16384, "parallel": 8})
    answer = refused(llama_8b_facts(), spec, pool(), [node(memory_bytes=16 * GIB)], {})
    assert answer.reason is Reason.NO_NODE_FITS
    assert answer.missing_bytes > 0
    assert "context.length 16,384 with context.parallel 8 needs" in answer.message
    assert "16.0 GiB are free on node-a, the largest" in answer.message
    assert "context.length 16,384 with context.parallel 4 would fit" in answer.message


def test_the_missing_bytes_are_exactly_those_that_were_missing() -> None:
    spec = model(context={"length": 4096, "parallel": 4})
    small = 6 * GIB
    missing = refused(llama_8b_facts(), spec, pool(), [node(memory_bytes=small)], {}).missing_bytes
    placed(llama_8b_facts(), spec, pool(), [node(memory_bytes=small + missing)], {})
    almost = refused(llama_8b_facts(), spec, pool(), [node(memory_bytes=small + missing - 1)], {})
    assert almost.missing_bytes == 1


def test_a_model_that_fits_nowhere_is_told_so() -> None:
    answer = refused(llama_8b_facts(), model(), pool(), [node(memory_bytes=2 * GIB)], {})
    assert "no smaller context would fit; it takes a larger node" in answer.message


def test_a_context_over_the_models_own_is_refused_with_both_numbers() -> None:
    answer = refused(demo_facts(), model(context={"length": 5000}), pool(), [node()], {})
    assert answer.reason is Reason.CONTEXT_TOO_LONG
    assert answer.missing_bytes == 0
    assert "5,000" in answer.message
    assert "4,096" in answer.message


def test_a_model_of_next_to_no_context_is_refused() -> None:
    answer = refused(demo_facts(context_length=32), model(), pool(), [node()], {})
    assert answer.reason is Reason.CONTEXT_TOO_LONG


def test_the_first_flavor_that_fits_is_taken() -> None:
    flavors = pool(
        {"name": "small", "nodeSelector": {"size": "small"}},
        {"name": "large", "nodeSelector": {"size": "large"}},
        {"name": "huge"},
    )
    nodes = [
        node("s", labels={"size": "small"}, memory_bytes=2 * GIB),
        node("l", labels={"size": "large"}, memory_bytes=64 * GIB),
    ]
    placement = placed(llama_8b_facts(), model(), flavors, nodes, {})
    assert placement.flavor.name == placement.plan.flavor == "large"
    assert placement.plan.reasons[0].startswith("flavor small: context.length 2,048")


def test_no_flavor_fits_says_so_for_each_and_takes_the_nearest_for_the_missing_bytes() -> None:
    flavors = pool(
        {"name": "a", "nodeSelector": {"n": "a"}},
        {"name": "b", "nodeSelector": {"n": "b"}},
        {"name": "c", "nodeSelector": {"n": "c"}},
    )
    nodes = [
        node("a", labels={"n": "a"}, memory_bytes=GIB),
        node("b", labels={"n": "b"}, memory_bytes=4 * GIB),
    ]
    answer = refused(llama_8b_facts(), model(), flavors, nodes, {})
    only_b = refused(llama_8b_facts(), model(), pool(flavors.flavors[1].model_dump()), nodes, {})
    assert answer.missing_bytes == only_b.missing_bytes
    assert "flavor a:" in answer.message
    assert "flavor b:" in answer.message
    assert "flavor c: no node fits: 2 without label n=c" in answer.message


def test_without_any_node_the_message_says_so() -> None:
    answer = refused(demo_facts(), model(), pool(), [], {})
    assert answer.message == "flavor cpu: no node fits: the cluster has no nodes"
    assert answer.missing_bytes == 0


def test_a_taint_keeps_a_model_away_until_the_flavor_tolerates_it() -> None:
    tainted = [node(taints=(taint("dedicated"),))]
    assert "dedicated" in refused(demo_facts(), model(), pool(), tainted, {}).message
    tolerant = pool({"name": "cpu", "tolerations": [{"key": "dedicated", "operator": "Exists"}]})
    placed(demo_facts(), model(), tolerant, tainted, {})


def test_memory_that_other_models_use_is_not_there() -> None:
    spec = model(context={"length": 4096, "parallel": 1})
    nodes = [node("a", memory_bytes=8 * GIB)]
    placed(llama_8b_facts(), spec, pool(), nodes, {})
    assert refused(llama_8b_facts(), spec, pool(), nodes, {"a": 4 * GIB}).missing_bytes > 0
    waiting = {unbound("cpu"): 4 * GIB}
    assert refused(llama_8b_facts(), spec, pool(), nodes, waiting).missing_bytes > 0
    placed(llama_8b_facts(), spec, pool(), nodes, {unbound("other"): 4 * GIB})


def test_host_memory_is_a_limit_that_the_plan_keeps() -> None:
    flavors = pool({"name": "cpu", "host": {"memory": "220Mi"}})
    plan = placed(demo_facts(), model(), flavors, [node()], {}).plan
    assert plan.memory_limit_bytes <= 220 * MIB
    assert plan.parallel < 4
    spec = model(context={"parallel": 64})
    assert "host.memory is 220Mi" in refused(demo_facts(), spec, flavors, [node()], {}).message


@pytest.mark.parametrize(
    ("nodes", "cpu_millis", "threads"),
    [
        ([8000], 1750, 7),
        ([8000, 4000], 750, 3),
        ([3920], 500, 2),
        ([2000], 250, 1),
        ([1930], 250, 1),
        ([340], 170, 1),
        ([64000], 4000, 16),
    ],
)
def test_default_cpu_leaves_a_core_of_the_smallest_node_and_reserves_a_quarter_per_thread(
    nodes: list[int], cpu_millis: int, threads: int
) -> None:
    theirs = [node(f"n{each}", cpu_millis=each) for each in nodes]
    plan = placed(demo_facts(), model(), pool(), theirs, {}).plan
    assert (plan.cpu_millis, plan.threads) == (cpu_millis, threads)


def test_cpu_that_the_pool_sets_is_taken_if_a_node_has_it() -> None:
    flavors = pool({"name": "cpu", "host": {"cpu": "2500m"}})
    plan = placed(demo_facts(), model(), flavors, [node()], {}).plan
    assert (plan.cpu_millis, plan.threads) == (2500, 2)
    answer = refused(demo_facts(), model(), flavors, [node(cpu_millis=2000)], {})
    assert answer.message == "flavor cpu: host.cpu is 2500m, its largest node has 2"


def test_a_node_with_memory_but_without_the_cpu_is_not_counted() -> None:
    flavors = pool({"name": "cpu", "host": {"cpu": 4}})
    nodes = [node("weak", cpu_millis=2000), node("strong", memory_bytes=GIB)]
    answer = refused(llama_8b_facts(), model(), flavors, nodes, {})
    assert "1.0 GiB are free on strong" in answer.message


def test_the_models_kv_types_win_over_the_pools() -> None:
    flavors = pool(offload={"kvTypes": {"key": "q8_0", "value": "q8_0"}})
    plan = placed(demo_facts(), model(), flavors, [node()], {}).plan
    assert (plan.kv_key_type, plan.kv_value_type) == ("q8_0", "q8_0")
    spec = model(offload={"kvTypes": {"key": "q8_0", "value": "q4_0"}})
    plan = placed(demo_facts(), spec, flavors, [node()], {}).plan
    assert (plan.kv_key_type, plan.kv_value_type) == ("q8_0", "q4_0")


def test_kv_types_that_the_heads_do_not_allow_are_refused_with_the_way_out() -> None:
    odd = LayerRun(count=2, weight_bytes=1, kv_heads=2, key_length=80, value_length=80)
    spec = model(offload={"kvTypes": {"key": "f16", "value": "q8_0"}})
    answer = refused(demo_facts(layers=(odd,)), spec, pool(), [node()], {})
    assert answer.reason is Reason.UNSUPPORTED_KV_TYPE
    assert "offload.kvTypes.value q8_0" in answer.message
    assert "use f16" in answer.message
    placed(demo_facts(layers=(odd,)), model(), pool(), [node()], {})


def test_the_order_of_nodes_changes_nothing() -> None:
    nodes = [node("a"), node("b"), node("c", memory_bytes=GIB)]
    assert place(demo_facts(), model(), pool(), nodes, {}) == place(
        demo_facts(), model(), pool(), reversed(nodes), {}
    )


@pytest.mark.parametrize(
    ("name", "types", "words"),
    [
        ("deepseek-v2-lite", {"key": "q8_0", "value": "f16"}, "takes its values from the keys"),
        ("phi-4", {"key": "q8_0", "value": "q8_0"}, "use f16, or offload.kvLayout Unified"),
    ],
)
def test_cells_that_this_build_cannot_have_are_refused_with_the_way_out(
    name: str, types: dict[str, str], words: str
) -> None:
    wanted = model(offload={"kvTypes": types}, context={"length": 2048})
    answer = place(shape_facts(name), wanted, pool(), [node()], {})
    assert isinstance(answer, NoPlacement)
    assert answer.reason is Reason.UNSUPPORTED_KV_TYPE
    assert words in answer.message


def test_the_same_cells_are_taken_where_they_work() -> None:
    for name, layout in (("phi-4", "Unified"), ("phi-3-mini", "Split")):
        types = {"key": "q8_0", "value": "q8_0"}
        wanted = model(
            offload={"kvTypes": types, "kvLayout": layout}, context={"length": 2048, "parallel": 2}
        )
        assert isinstance(place(shape_facts(name), wanted, pool(), [node()], {}), Placement)
