"""The cache against a cluster's true history, delivered late, twice and with holes."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from terrace.api import names
from terrace.api.names import Key
from terrace.controller.cache import Cache
from terrace.controller.kinds import CONFIGMAP, MODEL, NODE, POD, key_of
from terrace.controller.port import Listing

NAMES = ("a", "b", "c")
STEPS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(["write", "delete"])), max_size=25
)


def history(steps: list[tuple[str, str]]) -> tuple[list[tuple[Any, bool]], dict[str, Any]]:
    """All events of a run, in order, and what is there at the end."""
    events: list[tuple[Any, bool]] = []
    live: dict[str, Any] = {}
    for version, (name, action) in enumerate(steps, start=1):
        old = live.get(name)
        if action == "delete" and old is None:
            continue
        uid = old["metadata"]["uid"] if old else f"u{version}"
        obj = {
            "metadata": {
                "name": name,
                "namespace": "n",
                "uid": uid,
                "resourceVersion": str(version),
                "ownerReferences": [{"controller": True, "uid": f"owner-{name}"}],
            },
            "data": {"version": version},
        }
        events.append((copy.deepcopy(obj), action == "delete"))
        if action == "delete":
            del live[name]
        else:
            live[name] = obj
    return events, live


def see(cache: Cache, obj: Any, *, is_deleted: bool) -> None:
    if is_deleted:
        cache.drop(CONFIGMAP, key_of(obj), int(obj["metadata"]["resourceVersion"]))
    else:
        cache.put(CONFIGMAP, copy.deepcopy(obj))


@given(steps=STEPS, data=st.data())
def test_any_order_of_all_events_ends_with_the_truth(
    steps: list[tuple[str, str]], data: st.DataObject
) -> None:
    events, live = history(steps)
    shuffled = data.draw(st.permutations(events + events[::2]))
    cache = Cache()
    for obj, is_deleted in shuffled:
        see(cache, obj, is_deleted=is_deleted)
    assert {o["metadata"]["name"]: o["data"] for o in cache.of_kind(CONFIGMAP)} == {
        name: obj["data"] for name, obj in live.items()
    }


@given(steps=STEPS, data=st.data())
def test_a_full_list_mends_any_loss(steps: list[tuple[str, str]], data: st.DataObject) -> None:
    events, live = history(steps)
    cache = Cache()
    for obj, is_deleted in events:
        if data.draw(st.booleans()):
            see(cache, obj, is_deleted=is_deleted)
    listing = Listing(list(live.values()), str(len(steps)))
    cache.replace(CONFIGMAP, listing, None)
    assert {o["metadata"]["name"]: o["data"] for o in cache.of_kind(CONFIGMAP)} == {
        name: obj["data"] for name, obj in live.items()
    }
    for name in NAMES:
        owned = [o["metadata"]["name"] for _, o in cache.owned_by(f"owner-{name}")]
        assert owned == ([name] if name in live else [])


@given(steps=STEPS)
def test_an_object_newer_than_the_list_stays(steps: list[tuple[str, str]]) -> None:
    events, live = history(steps)
    cache = Cache()
    for obj, is_deleted in events:
        see(cache, obj, is_deleted=is_deleted)
    cache.replace(CONFIGMAP, Listing([], "0"), None)
    assert {key.name for key in cache.keys(CONFIGMAP)} == set(live)


def test_a_heartbeat_is_no_change_and_a_taint_is() -> None:
    def node(version: int, beat: str, **spec: Any) -> dict[str, Any]:
        return {
            "metadata": {"name": "n", "uid": "u", "resourceVersion": str(version)},
            "spec": spec,
            "status": {
                "allocatable": {"cpu": "1"},
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": beat}],
            },
        }

    cache = Cache()
    assert cache.put(NODE, node(1, "now")) is not None
    assert cache.put(NODE, node(2, "later")) is None
    assert cache.put(NODE, node(3, "later", taints=[{"key": "k"}])) is not None


def test_a_pod_s_model_and_a_model_s_names_are_found_until_they_change() -> None:
    cache = Cache()
    meta = {"name": "p", "namespace": "n", "uid": "u", "resourceVersion": "1"}
    pod = {"metadata": {**meta, "labels": {names.LABEL_MODEL: "m"}}, "spec": {}, "status": {}}
    cache.put(POD, pod)
    assert [key_of(found) for found in cache.pods_of_model(Key("n", "m"))] == [Key("n", "p")]
    relabelled = {**pod, "metadata": {**meta, "resourceVersion": "2", "labels": {}}}
    cache.put(POD, relabelled)
    assert cache.pods_of_model(Key("n", "m")) == []
    model = {
        "metadata": {"name": "m", "namespace": "n", "uid": "v", "resourceVersion": "3"},
        "spec": {"servedNames": ["x", 7], "poolRef": {"name": "p"}},
    }
    cache.put(MODEL, model)
    assert len(cache.models_named("x")) == len(cache.models_in_pool(Key("n", "p"))) == 1
    cache.drop(MODEL, Key("n", "m"), 4)
    assert cache.models_named("x") == cache.models_in_pool(Key("n", "p")) == []
