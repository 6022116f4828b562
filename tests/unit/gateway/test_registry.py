"""The gateway's view of models and pods."""

from __future__ import annotations

from support.gateway import raw_model, raw_pod
from terrace.api.names import Key
from terrace.gateway.registry import Registry, parse_endpoint, parse_model


def registry(*models: dict[str, object]) -> Registry:
    made = Registry()
    made.replace_models(models, None)
    return made


def test_a_model_is_found_by_each_name_it_won_and_by_namespace_and_name() -> None:
    found = registry(raw_model(served=["chat", "gpt-4o"]))
    for name in ("chat", "gpt-4o", "default/demo"):
        model = found.resolve(name)
        assert model is not None
        assert model.key == Key("default", "demo")


def test_a_name_that_no_status_grants_is_unknown() -> None:
    assert registry(raw_model(served=[])).resolve("demo") is None
    assert registry(raw_model(served=[])).resolve("default/demo") is not None


def test_the_name_of_an_object_wins_over_a_served_name_with_a_slash() -> None:
    found = registry(raw_model("a", "team"), raw_model("thief", "other", served=["team/a"]))
    model = found.resolve("team/a")
    assert model is not None
    assert model.key == Key("team", "a")


def test_the_older_of_two_models_with_one_served_name_wins() -> None:
    young = raw_model("a", served=["chat"], created="2026-11-21T00:00:01Z")
    old = raw_model("b", served=["chat"], created="2026-11-21T00:00:00Z")
    model = registry(young, old).resolve("chat")
    assert model is not None
    assert model.key.name == "b"


def test_a_model_that_loses_a_name_is_no_longer_found_by_it() -> None:
    found = registry(raw_model(served=["chat"]))
    found.apply_model(raw_model(served=["other"]))
    assert found.resolve("chat") is None
    assert found.resolve("other") is not None


def test_a_list_of_one_namespace_removes_what_vanished_there_and_nothing_elsewhere() -> None:
    found = registry(raw_model("a", "one"), raw_model("b", "one"), raw_model("c", "two"))
    found.replace_models([raw_model("a", "one")], "one")
    assert [str(model.key) for model in found.models()] == ["one/a", "two/c"]


def test_a_removed_model_is_unknown_at_once() -> None:
    found = registry(raw_model())
    found.remove_model(raw_model())
    assert found.resolve("demo") is None
    assert not found.knows(Key("default", "demo"))
    found.remove_model(raw_model())  # a second time is fine


def test_only_ready_pods_that_are_not_on_their_way_out_are_endpoints() -> None:
    assert parse_endpoint(raw_pod()) is not None
    assert parse_endpoint(raw_pod(ready=False)) is None
    assert parse_endpoint(raw_pod(deleted=True)) is None
    assert parse_endpoint(raw_pod(address="")) is None


def test_a_pod_without_our_port_or_our_label_is_no_endpoint() -> None:
    nameless = raw_pod()
    nameless["spec"]["containers"][0]["ports"][0]["name"] = "metrics"
    foreign = raw_pod()
    foreign["metadata"]["labels"] = {}
    assert parse_endpoint(nameless) is None
    assert parse_endpoint(foreign) is None


def test_an_ipv6_address_is_bracketed() -> None:
    endpoint = parse_endpoint(raw_pod(address="fd00::7", port=8000))
    assert endpoint is not None
    assert endpoint.url == "http://[fd00::7]:8000"


def test_a_pod_that_turns_unready_stops_being_an_endpoint() -> None:
    found = Registry()
    found.apply_pod(raw_pod())
    assert len(found.endpoints(Key("default", "demo"))) == 1
    found.apply_pod(raw_pod(ready=False))
    assert found.endpoints(Key("default", "demo")) == ()


def test_a_pod_recreated_under_its_name_is_another_endpoint() -> None:
    found = Registry()
    found.apply_pod(raw_pod(uid="1"))
    (before,) = found.endpoints(Key("default", "demo"))
    found.apply_pod(raw_pod(uid="2"))
    (after,) = found.endpoints(Key("default", "demo"))
    assert before != after


def test_a_pod_that_changes_its_model_moves() -> None:
    found = Registry()
    found.apply_pod(raw_pod(model="a"))
    found.apply_pod(raw_pod(model="b"))
    assert found.endpoints(Key("default", "a")) == ()
    assert len(found.endpoints(Key("default", "b"))) == 1


def test_pods_that_vanished_while_the_watch_was_cut_are_gone_after_the_list() -> None:
    found = Registry()
    found.replace_pods([raw_pod("a"), raw_pod("b")], None)
    found.replace_pods([raw_pod("b")], None)
    assert [endpoint.pod.name for endpoint in found.endpoints(Key("default", "demo"))] == ["b"]


def test_only_a_condition_that_is_not_true_says_why_a_model_is_not_ready() -> None:
    raw = raw_model(message="2 of 2 replicas are ready")
    raw["status"]["conditions"][0]["status"] = "True"
    assert parse_model(raw).message == ""


def test_a_ready_model_without_replicas_says_why_it_has_none() -> None:
    raw = raw_model(message="spec.replicas is 0: no replica is wanted")
    raw["status"]["conditions"] = [
        {"type": "Ready", "status": "True", "message": "as wanted"},
        {"type": "Available", "status": "False", "message": "spec.replicas is 0"},
    ]
    assert parse_model(raw).message == "spec.replicas is 0"


def test_a_model_without_status_or_with_odd_values_is_read_as_far_as_it_goes() -> None:
    bare = parse_model({"metadata": {"name": "a", "namespace": "b"}})
    assert (bare.served_names, bare.created, bare.message) == ((), 0, "")
    odd = parse_model(
        {
            "metadata": {"name": "a", "namespace": "b", "creationTimestamp": "soon"},
            "status": {"servedNames": ["x", 7], "conditions": [{"type": "Ready", "message": None}]},
        }
    )
    assert (odd.served_names, odd.created, odd.message) == (("x",), 0, "")
