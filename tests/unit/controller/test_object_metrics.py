"""What a scrape tells of models, their replicas and fetch Jobs, change by change."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from terrace.api import names
from terrace.controller.cache import Cache
from terrace.controller.kinds import JOB, MODEL, POD, Kind
from terrace.controller.object_metrics import MAX_MODELS, ObjectMetrics
from terrace_runtime.contract import EXIT_DEVICE_MEMORY, RUNTIME_CONTAINER


class World:
    """A cache whose changes reach the metrics."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.version = 0
        metrics = ObjectMetrics()
        self.cache.tell = metrics.see
        self.registry = CollectorRegistry()
        self.registry.register(metrics)

    def put(self, kind: Kind, name: str, **manifest: Any) -> None:
        self.version += 1
        metadata = {"name": name, "namespace": "ns", "uid": name, **manifest.pop("metadata", {})}
        metadata["resourceVersion"] = str(self.version)
        self.cache.put(kind, {"metadata": metadata, **manifest})

    def drop(self, kind: Kind, name: str) -> None:
        self.version += 1
        (key,) = (key for key in self.cache.keys(kind) if key.name == name)
        self.cache.drop(kind, key, self.version)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"terrace_operator_{name}", labels)


def status(reason: str, **more: Any) -> dict[str, Any]:
    word = "True" if reason == "Ready" else "False"
    return {"conditions": [{"type": "Ready", "status": word, "reason": reason}], **more}


def replica(world: World, restarts: int, **ended: Any) -> None:
    container = {"name": RUNTIME_CONTAINER, "restartCount": restarts}
    if ended:
        container["lastState"] = {"terminated": ended}
    world.put(
        POD,
        "demo-cpu-0",
        metadata={"labels": names.selector_labels("demo")},
        spec={},
        status={"containerStatuses": [container]},
    )


def test_models_are_counted_by_what_their_conditions_say_now() -> None:
    world = World()
    for name in ("a", "b"):
        world.put(MODEL, name, status=status("Fetching"))
    world.put(MODEL, "a", status=status("Ready"))
    ready = {"condition": "Ready", "status": "True", "reason": "Ready"}
    fetching = {"condition": "Ready", "status": "False", "reason": "Fetching"}
    assert world.value("models", **ready) == 1
    assert world.value("models", **fetching) == 1
    assert world.value("model_condition", model="ns/a", **ready) == 1
    assert world.value("model_condition", model="ns/a", **fetching) is None
    world.drop(MODEL, "b")
    assert world.value("models", **fetching) is None


def test_replicas_plan_and_download_of_a_model_are_told_in_numbers() -> None:
    world = World()
    plan = {"bytes": {"weights": 7, "kv": 5}}
    download = {"doneBytes": 10, "totalBytes": 30}
    shown = status("Ready", replicas=2, readyReplicas=1, plan=plan, download=download)
    world.put(MODEL, "demo", spec={"replicas": 3}, status=shown)
    replicas = [
        world.value("model_replicas", model="ns/demo", state=state)
        for state in ("wanted", "live", "ready")
    ]
    assert replicas == [3, 2, 1]
    assert world.value("model_planned_bytes", model="ns/demo", kind="kv") == 5
    assert world.value("model_download_bytes", model="ns/demo", state="total") == 30


def test_restarts_count_from_zero_by_what_ended_the_container() -> None:
    world = World()
    world.put(MODEL, "demo", status=status("Ready"))
    replica(world, 4)  # Before this process began to look.
    reasons = ("host-memory", "device-memory", "other")

    def counts() -> list[float | None]:
        name = "replica_restarts_total"
        return [world.value(name, model="ns/demo", reason=reason) for reason in reasons]

    assert counts() == [0, 0, 0]
    replica(world, 5, exitCode=137, reason="OOMKilled")
    assert counts() == [1, 0, 0]
    replica(world, 7, exitCode=EXIT_DEVICE_MEMORY, reason="Error")
    assert counts() == [1, 2, 0]
    replica(world, 8, exitCode=1, reason="Error")
    assert counts() == [1, 2, 1]
    world.drop(MODEL, "demo")
    assert counts() == [None] * 3


def test_fetch_jobs_are_counted_by_state_and_none_is_zero() -> None:
    world = World()
    world.put(JOB, "one", status={})
    world.put(JOB, "two", status={"conditions": [{"type": "Failed", "status": "True"}]})
    states = ("active", "succeeded", "failed")
    assert [world.value("fetch_jobs", state=state) for state in states] == [1, 0, 1]


def test_a_stored_model_that_does_not_parse_is_told_as_far_as_it_goes() -> None:
    world = World()
    world.put(MODEL, "odd", spec={"replicas": "many"}, status={"plan": None, "download": None})
    assert world.value("model_replicas", model="ns/odd", state="wanted") is None
    assert b"ns/odd" not in generate_latest(world.registry)


def test_models_beyond_the_bound_count_in_the_sums_alone() -> None:
    world = World()
    for index in range(MAX_MODELS + 1):
        world.put(MODEL, f"m{index}", status=status("Ready"))
    ready = {"condition": "Ready", "status": "True", "reason": "Ready"}
    assert world.value("models", **ready) == MAX_MODELS + 1
    assert world.value("model_condition", model=f"ns/m{MAX_MODELS}", **ready) is None
