"""Other images: replicas are replaced one by one under traffic; our upgrade replaces none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from e2e.test_rollout import POD, Traffic
from support.chain import model
from support.real_chain import image_name, load_as
from support.waiting import wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from support.real_chain import RealChain

pytestmark = pytest.mark.timeout(600)


def images_of(pods: list[dict[str, Any]]) -> set[str]:
    return {pod["spec"]["containers"][0]["image"] for pod in pods}


def test_another_runtime_image_comes_one_replica_after_the_other_and_fails_no_request(
    chain: RealChain, tmp_path: Path
) -> None:
    other = f"{image_name('runtime')}-other"
    load_as(chain.cluster, tmp_path, "runtime", other)
    pool: dict[str, Any] = {
        "apiVersion": "terrace.dev/v1alpha1",
        "kind": "InferencePool",
        "metadata": {"name": "changing", "namespace": "default"},
        "spec": {"flavors": [{"name": "cpu"}], "modelCache": {"size": "1Gi"}},
    }
    chain.apply(pool, model("changing", poolRef={"name": "changing"}, replicas=2))
    try:
        chain.wait_ready("changing")
        before = chain.uids("changing")
        assert images_of(chain.pods("changing")) == {image_name("runtime")}
        chain.ask({"model": "changing", "messages": POD, "max_tokens": 1})
        with Traffic(chain.url, "changing", clients=3) as traffic:
            wait_for("some answers", lambda: traffic.answers > 5)
            pool["spec"] = {**pool["spec"], "flavors": [{"name": "cpu", "runtimeImage": other}]}
            chain.apply(pool)

            def replaced() -> bool:
                ready = chain.get("im", "changing").get("status", {}).get("readyReplicas")
                pods = chain.pods("changing")
                return ready == len(pods) == 2 and images_of(pods) == {other}

            wait_for("two replicas of the other image", replaced, timeout=180, every=0.3)
            seen = traffic.answers
            wait_for("answers of the new ones", lambda: traffic.answers > seen + 5)
        assert not traffic.failures, (traffic.answers, traffic.failures[:5])
        assert not before & chain.uids("changing")
    finally:
        chain.delete("im", "changing")
        chain.delete("ipool", "changing")


def test_an_upgrade_of_operator_and_gateway_touches_no_replica(
    chain: RealChain, tmp_path: Path
) -> None:
    tag = image_name("operator").rpartition(":")[2] + "-next"
    for name in ("operator", "gateway", "runtime"):
        load_as(chain.cluster, tmp_path, name, f"{image_name(name).rpartition(':')[0]}:{tag}")
    uids, operator = chain.uids("demo"), chain.program("operator")["metadata"]["uid"]
    with Traffic(chain.url, "demo", clients=2) as traffic:
        wait_for("some answers", lambda: traffic.answers > 5)
        chain.install(tag=tag)
        wait_for("the next operator", lambda: is_led_by_another(chain, operator), timeout=120)
        # It has looked at the model: what is asked of it is done.
        chain.cluster.kubectl("scale", "im/demo", "--replicas=2")
        wait_for("a second replica", lambda: ready_replicas(chain) == 2, timeout=120, every=0.3)
        assert uids < chain.uids("demo")
        chain.cluster.kubectl("scale", "im/demo", "--replicas=1")
        wait_for("one replica", lambda: chain.uids("demo") == uids, timeout=120, every=0.3)
        seen = traffic.answers
        wait_for("answers through the new gateway", lambda: traffic.answers > seen + 5)
    assert not traffic.failures, (traffic.answers, traffic.failures[:5])
    assert images_of([chain.program("gateway")]) == {f"localhost/terrace/gateway:{tag}"}


def is_led_by_another(chain: RealChain, uid: str) -> bool:
    pod = chain.program("operator")
    lease = chain.get("lease", "terrace-operator", "terrace-system")
    is_new = bool(pod) and pod["metadata"]["uid"] != uid
    return is_new and pod["metadata"]["name"] in json.dumps(lease.get("spec", {}))


def ready_replicas(chain: RealChain) -> int:
    return int(chain.get("im", "demo").get("status", {}).get("readyReplicas", 0))
