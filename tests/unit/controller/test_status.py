"""Conditions, status and events of a model."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from support.controller_objects import MODEL_PATH, condition, facts, model, offload_plan
from terrace.api import names
from terrace.api.names import Key
from terrace.api.pool import Flavor
from terrace.api.status import InferenceModelStatus
from terrace.controller import events
from terrace.controller.claims import Claims
from terrace.controller.facts import Fetch, KnownModel
from terrace.controller.findings import Findings
from terrace.controller.kinds import MODEL, Manifest
from terrace.controller.placing import Decision
from terrace.controller.plan_status import difference
from terrace.controller.progress import Progress
from terrace.controller.status import model_status
from terrace.planner.plan import KvVolume
from terrace.planner.rooms import NoPlacement
from terrace_runtime.contract import (
    CacheReport,
    EngineReport,
    FetchFailure,
    FetchProgress,
    MemoryReport,
    RuntimeReport,
    TierReport,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = datetime(2026, 1, 2, 4, 0, 0, tzinfo=UTC)
CLAIMS = Claims(("demo",))
KNOWN = Fetch(known=KnownModel(facts(), MODEL_PATH))
PLAN = offload_plan(
    kv_value_type="q8_0",
    weights_bytes=1,
    kv_bytes=2,
    compute_bytes=3,
    base_bytes=4,
    memory_request_bytes=5,
    memory_limit_bytes=6,
    reasons=("because",),
)
PLACED = Decision(Flavor(name="cpu"), PLAN)


def pod(
    name: str = "demo-cpu-0", *, plan: str = "p", ready: bool = True, **status: Any
) -> Manifest:
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "metadata": {"name": name, "labels": {names.LABEL_PLAN: plan}},
        "spec": {},
        "status": {"conditions": conditions, **status},
    }


def found(**values: Any) -> Findings:
    defaults: dict[str, Any] = {
        "claims": CLAIMS,
        "replicas": (pod(),),
        "wanted_plan": "p",
        "stateful_set": "demo-cpu",
        "fetch": KNOWN,
        "decision": PLACED,
    }
    return Findings(**(defaults | values))


def stored(before: Manifest | None = None, generation: int = 3) -> Manifest:
    live = model()
    live["metadata"] |= {"uid": "u", "generation": generation, "resourceVersion": "7"}
    return live | {"status": before or {"observedGeneration": -1}}


def status(findings: Findings, before: Manifest | None = None, at: datetime = NOW) -> Manifest:
    return model_status(stored(before), findings, "http://gateway/v1", at)


def verdict(findings: Findings, kind: str) -> tuple[str, str]:
    shown = condition({"status": status(findings)}, kind)
    return shown["status"], shown["reason"]


def runtime_state(state: dict[str, Any], last: dict[str, Any] | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": "runtime", "state": state}
    return {"containerStatuses": [entry | ({"lastState": last} if last else {})]}


CRASHED = pod(
    ready=False,
    **runtime_state(
        {"waiting": {"reason": "CrashLoopBackOff"}},
        {"terminated": {"exitCode": 13, "reason": "Error", "message": "cannot load"}},
    ),
)
NO_IMAGE = pod(
    ready=False, **runtime_state({"waiting": {"reason": "ErrImagePull", "message": "unknown"}})
)
HOMELESS = pod(
    ready=False,
    conditions=[
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/3 nodes: Insufficient memory",
        }
    ],
)
PERMANENT: Fetch[Any] = Fetch(
    failure=FetchFailure(reason="InvalidModel", message="no magic", permanent=True)
)
TRANSIENT: Fetch[Any] = Fetch(
    failure=FetchFailure(reason="DownloadFailed", message="reset", permanent=False)
)
TOO_LARGE = NoPlacement("NoNodeFits", "needs 14 GiB", 1)  # type: ignore[arg-type]
TOO_LONG = NoPlacement("ContextTooLong", "over 2,048")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("findings", "kind", "wanted"),
    [
        (found(), "Ready", ("True", "Ready")),
        (found(), "Reconciling", ("False", "Done")),
        (found(), "Stalled", ("False", "NotStalled")),
        (found(), "ModelCached", ("True", "Cached")),
        (found(), "Placed", ("True", "Placed")),
        (found(), "Available", ("True", "ReplicasReady")),
        (found(replicas=(CRASHED,)), "Available", ("False", "Crashing")),
        (found(replicas=(CRASHED,)), "Ready", ("False", "Crashing")),
        (found(replicas=(NO_IMAGE,)), "Available", ("False", "ImageUnavailable")),
        (found(replicas=(HOMELESS,)), "Available", ("False", "Unschedulable")),
        (found(replicas=()), "Available", ("False", "ReplicasStarting")),
        (found(replicas=(), wanted_replicas=0), "Ready", ("True", "ScaledToZero")),
        (found(replicas=(), wanted_replicas=0), "Reconciling", ("False", "Done")),
        (found(replicas=(), wanted_replicas=0), "Available", ("False", "ScaledToZero")),
        (found(wanted_replicas=0), "Ready", ("True", "Ready")),
        (found(wanted_replicas=0), "Reconciling", ("True", "Progressing")),
        (found(replicas=(pod(), pod("demo-cpu-1"))), "Reconciling", ("True", "Progressing")),
        (found(replicas=(pod(plan="old"),)), "Ready", ("False", "RollingOut")),
        (found(replicas=(pod(plan="old"),)), "Available", ("True", "ReplicasReady")),
        (found(wanted_replicas=2), "Ready", ("False", "ReplicasStarting")),
        (found(fetch=PERMANENT, decision=None), "ModelCached", ("False", "InvalidModel")),
        (found(fetch=PERMANENT, decision=None), "Stalled", ("True", "InvalidModel")),
        (found(fetch=PERMANENT, decision=None), "Reconciling", ("False", "Done")),
        (found(fetch=TRANSIENT, decision=None), "Stalled", ("False", "NotStalled")),
        (found(fetch=TRANSIENT, decision=None), "Ready", ("False", "DownloadFailed")),
        (found(fetch=Fetch(), decision=None), "Placed", ("False", "WaitingForFacts")),
        (found(fetch=Fetch(), decision=None), "ModelCached", ("False", "FetchPending")),
        (found(decision=TOO_LARGE), "Placed", ("False", "NoNodeFits")),
        (found(decision=TOO_LARGE), "Stalled", ("False", "NotStalled")),
        (found(decision=TOO_LONG), "Stalled", ("True", "ContextTooLong")),
        (found(decision=None, missing_pool="p"), "Placed", ("False", "PoolNotFound")),
        (found(decision=None, missing_pool="p"), "Ready", ("False", "PoolNotFound")),
        (found(decision=None, missing_pool="p"), "Available", ("True", "ReplicasReady")),
        (found(decision=None, invalid_spec="spec.x"), "Stalled", ("True", "InvalidSpec")),
        (found(decision=None, pool_problem="pool"), "Stalled", ("True", "InvalidSpec")),
        (found(foreign="Service demo"), "Stalled", ("True", "ForeignObject")),
        (found(predecessor="Job demo"), "Ready", ("False", "PredecessorRemains")),
        (found(predecessor="Job demo"), "Reconciling", ("True", "Progressing")),
        (found(predecessor="Job demo"), "Stalled", ("False", "NotStalled")),
        (found(refused="quota"), "Stalled", ("True", "Refused")),
        (
            found(claims=Claims((), (("demo", Key("n", "old")),))),
            "Stalled",
            ("True", "NameConflict"),
        ),
        (found(claims=Claims((), (("demo", Key("n", "old")),))), "Ready", ("True", "Ready")),
    ],
)
def test_conditions(findings: Findings, kind: str, wanted: tuple[str, str]) -> None:
    assert verdict(findings, kind) == wanted


def test_a_status_is_whole_typed_and_of_this_generation() -> None:
    shown = status(found())
    assert InferenceModelStatus.model_validate(shown).observed_generation == 3
    assert [c["observedGeneration"] for c in shown["conditions"]] == [3] * 6
    assert shown["plan"]["kvTypes"] == {"key": "f16", "value": "q8_0"}
    assert shown["selector"].count("=") == 3


def test_an_equal_finding_gives_an_equal_status_later() -> None:
    shown = status(found())
    assert status(found(), before=shown, at=LATER) == shown


def test_a_transition_time_changes_with_the_status_only() -> None:
    first = status(found(replicas=()))
    second = status(found(replicas=(CRASHED,)), before=first, at=LATER)
    third = status(found(), before=second, at=LATER)
    times = [
        condition({"status": s}, "Ready")["lastTransitionTime"] for s in (first, second, third)
    ]
    assert times == ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z", "2026-01-02T04:00:00Z"]


def test_progress_is_shown_while_nothing_is_known() -> None:
    line = FetchProgress(stage="download", done_bytes=5, total_bytes=10, seconds_left=2)
    progress = Progress(line)
    running: Fetch[KnownModel] = Fetch(running_pod=pod("demo-fetch-x"))
    shown = status(found(fetch=running, decision=None, progress=progress))
    assert shown["download"]["doneBytes"] == 5
    assert shown["download"]["summary"] == "50%, 2s left"
    assert "download" not in status(found(progress=progress))


def test_a_report_is_rounded_and_survives_an_operator_s_restart() -> None:
    report = RuntimeReport(
        build="b",
        model="m",
        model_digest="d",
        plan_digest="p",
        state="ready",
        context_tokens=1,
        parallel=1,
        threads=1,
        memory=MemoryReport(anonymous_peak_bytes=(5 << 20) + 1),
        prompt_tokens_per_second=10.4,
        generated_tokens_per_second=3.6,
    )
    shown = status(found(report=report))
    assert shown["performance"] == {
        "promptTokensPerSecond": 10,
        "generatedTokensPerSecond": 4,
        "peakMemoryBytes": 6 << 20,
    }
    assert status(found(), before=shown)["performance"] == shown["performance"]


def test_the_use_of_the_tiers_is_shown_in_coarse_steps_and_survives_a_restart() -> None:
    def shown(hits: int) -> Any:
        tiers = (
            TierReport(name="host", limit_bytes=1000, used_bytes=512, hit_tokens=hits),
            TierReport(name="disk", limit_bytes=0),
        )
        cache = CacheReport(reuse="blocks", queried_tokens=1000, tiers=tiers)
        report = RuntimeReport(
            build="b",
            model="m",
            model_digest="d",
            plan_digest="p",
            state="ready",
            context_tokens=1,
            parallel=1,
            threads=1,
            engine=EngineReport(cache=cache),
        )
        return status(found(report=report))

    first = shown(261)
    host = {"name": "host", "limitBytes": 1000, "usedPercent": 50, "hitPercent": 25}
    assert first["cache"] == {"reuse": "blocks", "tiers": [host]}
    assert shown(270) == first  # A little more use is no reason to write.
    assert status(found(), before=first)["cache"] == first["cache"]


def test_the_plan_shows_its_tiers_and_where_the_disk_lies() -> None:
    volume = KvVolume(bytes=2 << 30, storage_class="fast")
    tiers = {"host_bytes": 1 << 30, "disk_bytes": 1 << 30, "prefetch_bytes": 1, "volume": volume}
    plan = PLAN.model_copy(update=tiers)
    shown = status(found(decision=Decision(Flavor(name="cpu"), plan)))["plan"]
    assert shown["tiers"] == {
        "host": 1 << 30,
        "disk": 1 << 30,
        "prefetchWindow": 1,
        "volume": "claim of 2.0 GiB of class fast for each replica",
    }
    assert (shown["weights"], shown["kvLayout"], shown["kvBlockTokens"]) == ("mapped", "Split", 32)


def test_a_pending_plan_says_what_it_would_change() -> None:
    better = PLAN.model_copy(update={"threads": 7})
    shown = status(found(decision=Decision(Flavor(name="cpu"), PLAN, better)))
    assert shown["plan"]["pending"] == {"digest": better.digest, "reason": "threads 3 -> 7"}
    assert difference(PLAN, PLAN) == "other buffer sizes"


def test_replicas_without_a_pool_keep_plan_and_placement_in_status() -> None:
    before = status(found())
    shown = status(found(decision=None, missing_pool="p"), before=before)
    assert shown["plan"] == before["plan"]
    assert shown["placement"] == before["placement"]


def test_a_condition_that_did_not_change_is_no_event() -> None:
    shown = status(found())
    assert list(events.transitions(shown, status(found(), before=shown, at=LATER))) == []


def test_a_failure_is_one_warning_and_not_one_per_condition() -> None:
    before = status(found(fetch=Fetch(), decision=None, replicas=()))
    after = status(found(fetch=PERMANENT, decision=None, replicas=()), before=before)
    told = list(events.transitions(before, after))
    assert [entry["reason"] for entry in told] == ["InvalidModel"]
    event = events.event(MODEL, stored(after), told[0], NOW)
    assert event["type"] == "Warning"
    assert event["involvedObject"]["uid"] == "u"
    assert "no magic" in event["message"]


def test_the_same_event_has_the_same_name_and_another_has_another() -> None:
    about, told = stored(status(found())), status(found())["conditions"]
    first, again = (events.event(MODEL, about, told[0], at) for at in (NOW, LATER))
    other = events.event(MODEL, about, told[3], NOW)
    assert first["metadata"]["name"] == again["metadata"]["name"] != other["metadata"]["name"]
