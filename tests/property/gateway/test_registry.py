"""The registry's indexes say what a fresh registry of the same objects would say."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from support.gateway import raw_model, raw_pod
from terrace.api.names import Key
from terrace.gateway.registry import Registry, parse_endpoint
from terrace.gateway.routing import Router

NAMES = ["a", "b", "c"]
keys = st.tuples(st.sampled_from(["one", "two"]), st.sampled_from(NAMES))
served = st.lists(st.sampled_from(["x", "y", "one/a", "two/b"]), max_size=3, unique=True)
models = st.builds(
    lambda key, names, second: raw_model(
        key[1], key[0], names, created=f"2026-11-21T00:00:0{second}Z"
    ),
    keys,
    served,
    st.integers(0, 2),
)
pods = st.builds(
    lambda key, model, ready, uid: raw_pod(key[1], model, key[0], ready=ready, uid=str(uid)),
    keys,
    st.sampled_from(["m", "n"]),
    st.booleans(),
    st.integers(0, 1),
)
Raw = dict[str, Any]


def key_of(raw: Raw) -> tuple[str, str]:
    return raw["metadata"]["namespace"], raw["metadata"]["name"]


def view(registry: Registry) -> object:
    wanted = ["x", "y", *(f"{n}/{m}" for n in ("one", "two") for m in NAMES)]
    names = {name: registry.resolve(name) for name in wanted}
    endpoints = {
        (n, m): frozenset(registry.endpoints(Key(n, m))) for n in ("one", "two") for m in "mn"
    }
    return names, endpoints, registry.models(), registry.some_names(9)


@given(st.lists(st.tuples(st.sampled_from(["apply", "remove"]), models), max_size=25))
def test_models_applied_and_removed_in_any_order(steps: list[tuple[str, Raw]]) -> None:
    registry = Registry()
    left: dict[tuple[str, str], Raw] = {}
    for step, raw in steps:
        if step == "apply":
            registry.apply_model(raw)
            left[key_of(raw)] = raw
        else:
            registry.remove_model(raw)
            left.pop(key_of(raw), None)
    fresh = Registry()
    fresh.replace_models(left.values(), None)
    assert view(registry) == view(fresh)


@given(st.lists(st.tuples(st.sampled_from(["apply", "remove"]), pods), max_size=25))
def test_pods_applied_and_removed_in_any_order(steps: list[tuple[str, Raw]]) -> None:
    registry = Registry()
    left: dict[tuple[str, str], Raw] = {}
    for step, raw in steps:
        if step == "apply":
            registry.apply_pod(raw)
            left[key_of(raw)] = raw
        else:
            registry.remove_pod(raw)
            left.pop(key_of(raw), None)
    fresh = Registry()
    fresh.replace_pods(left.values(), None)
    assert view(registry) == view(fresh)


@given(st.lists(models, max_size=8), st.lists(models, max_size=8))
def test_a_list_leaves_exactly_what_it_holds(before: list[Raw], after: list[Raw]) -> None:
    registry, fresh = Registry(), Registry()
    registry.replace_models(before, None)
    registry.replace_models(after, None)
    fresh.replace_models(after, None)
    assert view(registry) == view(fresh)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 4), max_size=60), st.integers(1, 5))
def test_no_endpoint_is_two_requests_busier_than_the_idlest(
    seed: int, finishes: list[int], count: int
) -> None:
    endpoints = [e for n in range(count) if (e := parse_endpoint(raw_pod(f"pod-{n}")))]
    router = Router(random.Random(seed), lambda: 0.0)
    for _ in finishes:
        picked = router.pick(endpoints)
        assert picked is not None
        router.started(picked)
        counts = [router.in_flight(endpoint) for endpoint in endpoints]
        assert max(counts) - min(counts) <= 1
