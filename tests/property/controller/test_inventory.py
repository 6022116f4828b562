"""The inventory says after any history what a walk over all objects would say."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from support.controller_objects import node, offload_plan
from terrace.api import names
from terrace.api.names import Key
from terrace.api.pool import Flavor
from terrace.controller.cache import Cache
from terrace.controller.kinds import NODE, POD, STATEFULSET, Kind, Manifest
from terrace.planner.inputs import unbound

if TYPE_CHECKING:
    from terrace.planner.inputs import Usage

GPU = "nvidia.com/gpu"
MODELS = ("a", "b", "c")
NODES = ("n1", "fast")
"""One is called as a flavor is."""
FLAVORS = {"fast": {"flavor": "fast"}, "cpu": {}}


def manifest(kind: str, name: str, model: str, uid: str, **rest: Any) -> Manifest:
    labels = {names.MANAGED_BY: names.MANAGED_BY_VALUE, names.LABEL_MODEL: model}
    return {"kind": kind, "metadata": {"name": name, "namespace": "ns", "uid": uid,
            "labels": labels | rest.pop("labels", {})}, **rest}  # fmt: skip


def pod_spec(amount: int, devices: int, flavor: str = "cpu") -> Manifest:
    resources: Manifest = {"requests": {"memory": str(amount)}}
    if devices:
        resources["limits"] = {GPU: str(devices)}
    selector = FLAVORS[flavor]
    return {"containers": [{"name": "runtime", "resources": resources}], "nodeSelector": selector}


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, Kind, Manifest]:
    model = draw(st.sampled_from(MODELS))
    flavor = draw(st.sampled_from(sorted(FLAVORS)))
    amount, devices = draw(st.integers(1, 9)), draw(st.integers(0, 2))
    verb = draw(st.sampled_from(("put", "put", "put", "drop")))
    if draw(st.booleans()):
        name = f"{model}-{flavor}"
        spec = {
            "replicas": draw(st.integers(0, 3)),
            "template": {"spec": pod_spec(amount, devices, flavor)},
        }
        label = {names.LABEL_FLAVOR: flavor}
        uid = f"set-{name}-{draw(st.integers(0, 1))}"
        return verb, STATEFULSET, manifest("StatefulSet", name, model, uid, labels=label, spec=spec)
    ordinal = draw(st.integers(0, 2))
    name = f"{model}-{flavor}-{ordinal}"
    spec = pod_spec(amount, devices, flavor)
    if chosen := draw(st.sampled_from((*NODES, None))):
        spec["nodeName"] = chosen
    pod = manifest("Pod", name, model, f"pod-{name}-{draw(st.integers(0, 1))}", spec=spec)
    pod["status"] = {"phase": draw(st.sampled_from(("Pending", "Running", "Failed")))}
    owner = f"set-{model}-{flavor}-{draw(st.integers(0, 1))}"
    pod["metadata"]["ownerReferences"] = [
        {"kind": "StatefulSet", "name": "x", "uid": owner, "controller": True}
    ]
    return verb, POD, pod


def walked(cache: Cache, model: Key) -> dict[str, dict[str, int]]:
    """The same by looking at everything."""
    used: dict[str, Counter[str]] = {"memory": Counter(), GPU: Counter()}
    bound: Counter[str] = Counter()
    for pod in cache.of_kind(POD):
        if not pod["spec"].get("nodeName") or pod["status"]["phase"] == "Failed":
            continue
        bound[pod["metadata"]["ownerReferences"][0]["uid"]] += 1
        if pod["metadata"]["labels"][names.LABEL_MODEL] != model.name:
            for name, amount in _asked(pod["spec"]):
                used[name][pod["spec"]["nodeName"]] += amount
    for found in cache.of_kind(STATEFULSET):
        missing = found["spec"]["replicas"] - bound[found["metadata"]["uid"]]
        if missing > 0 and found["metadata"]["labels"][names.LABEL_MODEL] != model.name:
            for name, amount in _asked(found["spec"]["template"]["spec"]):
                lane = unbound(found["metadata"]["labels"][names.LABEL_FLAVOR])
                used[name][lane] += missing * amount
    return {name: dict(+counts) for name, counts in used.items()}


def shown(usage: Usage) -> dict[str, dict[str, int]]:
    by_name = {"memory": usage.memory, GPU: usage.devices.get(GPU, {})}
    return {
        name: {place: amount for place, amount in view.items() if amount}
        for name, view in by_name.items()
    }


def _asked(spec: Manifest) -> list[tuple[str, int]]:
    resources = spec["containers"][0]["resources"]
    both = {**resources["requests"], **resources.get("limits", {})}
    return [(name, int(amount)) for name, amount in both.items()]


@given(st.lists(changes(), max_size=30))
def test_usage_is_what_a_walk_over_all_objects_finds(
    history: list[tuple[str, Kind, Manifest]],
) -> None:
    cache = Cache()
    for version, (verb, kind, changed) in enumerate(history, start=1):
        changed["metadata"]["resourceVersion"] = str(version)
        if verb == "put":
            cache.put(kind, changed)
        else:
            cache.drop(kind, Key("ns", changed["metadata"]["name"]), version)
        for model in MODELS:
            key = Key("ns", model)
            assert shown(cache.inventory.used_by_others(key)) == walked(cache, key)


@given(st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from("xyz"), st.booleans())))
def test_nodes_are_found_by_the_labels_they_have_now(
    history: list[tuple[str, str, bool]],
) -> None:
    cache = Cache()
    now: dict[str, str] = {}
    for version, (name, value, is_gone) in enumerate(history, start=1):
        if is_gone:
            now.pop(name, None)
            cache.drop(NODE, Key("", name), version)
        else:
            now[name] = value
            joined = node(name, labels={"zone": value})
            joined["metadata"]["resourceVersion"] = str(version)
            cache.put(NODE, joined)
        assert [each.name for each in cache.inventory.nodes] == sorted(now)
        for wanted in "xyz":
            found = [each.name for each in cache.inventory.matching({"zone": wanted})]
            assert found == sorted(name for name, zone in now.items() if zone == wanted)


def test_a_placement_counts_from_its_decision_until_its_set_is_seen() -> None:
    cache, mine, other = Cache(), Key("ns", "a"), Key("ns", "b")
    flavor = Flavor.model_validate({"name": "fast", "nodeSelector": FLAVORS["fast"]})
    plan = offload_plan(flavor="fast", memory_request_bytes=5)
    cache.inventory.reserve(mine, flavor, plan, replicas=2)
    assert shown(cache.inventory.used_by_others(other))["memory"] == {unbound("fast"): 10}
    assert shown(cache.inventory.used_by_others(mine))["memory"] == {}
    spec = {"replicas": 2, "template": {"spec": pod_spec(5, 0, "fast")}}
    label = {names.LABEL_FLAVOR: "fast"}
    made = manifest("StatefulSet", "a-fast", "a", "u1", labels=label, spec=spec)
    made["metadata"]["resourceVersion"] = "1"
    cache.put(STATEFULSET, made)
    assert shown(cache.inventory.used_by_others(other))["memory"] == {unbound("fast"): 10}
    cache.drop(STATEFULSET, Key("ns", "a-fast"), 2)
    assert shown(cache.inventory.used_by_others(other))["memory"] == {}


def test_a_reservation_that_is_released_counts_no_more() -> None:
    cache, mine, other = Cache(), Key("ns", "a"), Key("ns", "b")
    flavor = Flavor.model_validate({"name": "fast", "nodeSelector": FLAVORS["fast"]})
    for _ in range(2):  # The second decision stands for the first.
        cache.inventory.reserve(mine, flavor, offload_plan(memory_request_bytes=5), replicas=1)
    assert shown(cache.inventory.used_by_others(other))["memory"] == {unbound("fast"): 5}
    cache.inventory.release(mine)
    assert shown(cache.inventory.used_by_others(other))["memory"] == {}


def test_what_waits_counts_for_every_flavor_that_shares_a_node() -> None:
    cache, other = Cache(), Key("ns", "b")
    for name, labels in {"n1": {"gpu": "y", "zone": "1"}, "n2": {"gpu": "y", "zone": "2"}}.items():
        joined = node(name, labels=labels)
        joined["metadata"]["resourceVersion"] = "1"
        cache.put(NODE, joined)
    zone = Flavor.model_validate({"name": "zone", "nodeSelector": {"zone": "1"}})
    cache.inventory.reserve(Key("ns", "a"), zone, offload_plan(memory_request_bytes=5), 1)
    seen = cache.inventory.used_by_others(
        other, {"gpu": {"gpu": "y"}, "two": {"zone": "2"}, "far": {"zone": "2", "gpu": "n"}}
    )
    assert shown(seen)["memory"] == {unbound("gpu"): 5}
