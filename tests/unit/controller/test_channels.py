"""The fact, progress, report and trust channels."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from simulation.controller.fake_cluster import FakeCluster
from support.controller_objects import DIGEST, fetched, not_fetched
from support.ports import own_address
from terrace.api.names import LABEL_MODEL, Key
from terrace.controller.facts import (
    KnownModel,
    known_model,
    model_status,
    parse_progress,
    persisted_model,
    read_fetch,
)
from terrace.controller.kinds import SECRET, Manifest
from terrace.controller.port import NotFoundError
from terrace.controller.progress import ProgressReader
from terrace.controller.report import MAX_BYTES, Reports, read_report
from terrace.controller.trust import BadTrustKeyError, ensure_trust_key
from terrace_runtime.contract import RUNTIME_PORT, FetchOutcome, FetchProgress, RuntimeReport

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
REPORT = RuntimeReport(
    build="b",
    model="demo",
    model_digest=DIGEST,
    plan_digest="p",
    state="ready",
    context_tokens=64,
    parallel=1,
    threads=1,
)


def stamp(ago_s: float) -> str:
    return (NOW - timedelta(seconds=ago_s)).strftime("%Y-%m-%dT%H:%M:%SZ")


def job(ended: str = "", ago_s: float = 0) -> Manifest:
    conditions = [{"type": ended, "status": "True", "lastTransitionTime": stamp(ago_s)}]
    return {
        "metadata": {"name": "demo-fetch", "uid": "job"},
        "status": {"conditions": conditions if ended else []},
    }


def fetch_pod(message: str | None, *, created: str = "1", code: int = 0) -> Manifest:
    state: Manifest = {"running": {}}
    if message is not None:
        state = {"terminated": {"exitCode": code, "reason": "Error", "message": message}}
    return {
        "metadata": {
            "name": f"demo-fetch-{created}",
            "namespace": "n",
            "uid": f"pod-{created}",
            "creationTimestamp": created,
            "ownerReferences": [{"uid": "job", "controller": True}],
        },
        "spec": {},
        "status": {
            "phase": "Running" if message is None else "Failed",
            "containerStatuses": [{"name": "fetch", "state": state}],
        },
    }


def replica(code: int, ago_s: float) -> Manifest:
    ended = {"exitCode": code, "finishedAt": stamp(ago_s)}
    entry = {"name": "runtime", "state": {"waiting": {}}, "lastState": {"terminated": ended}}
    return {"metadata": {"name": "r"}, "spec": {}, "status": {"containerStatuses": [entry]}}


def text(outcome: FetchOutcome) -> str:
    return outcome.model_dump_json()


KNOWN = known_model(fetched())
GOOD, BAD = text(fetched()), text(not_fetched("NotFound", "404", permanent=True))
RESET = text(not_fetched("DownloadFailed", "reset", permanent=False))


def test_facts_survive_the_way_through_status() -> None:
    assert KNOWN is not None
    stored = model_status(KNOWN).model_dump(mode="json", by_alias=True)
    assert persisted_model(stored | {"newField": 1}) == KNOWN
    assert persisted_model({"digest": 5}) is None
    assert persisted_model(None) is None


@pytest.mark.parametrize("message", ["", "not json", '{"facts": 5}', "x" * 5000])
def test_a_message_that_is_no_outcome_is_a_failure_that_is_tried_again(message: str) -> None:
    fetch = read_fetch(job(), [fetch_pod(message, code=137)], None, known_model, NOW, 60)
    assert fetch.failure is not None
    assert not fetch.failure.permanent
    assert "exit code 137" in fetch.failure.message


@pytest.mark.parametrize(
    ("live_job", "pods", "known", "wanted"),
    [
        (None, [], None, {}),
        (job(), [fetch_pod(None)], None, {"running": True}),
        (job(), [fetch_pod(GOOD)], None, {"known": True}),
        (job("Complete", 99), [], KNOWN, {"known": True}),
        (job("Complete", 5), [], None, {"rerun_in": 15.0}),
        (job("Complete", 99), [], None, {"failure": True, "rerun": True}),
        (job("Failed", 99), [fetch_pod(BAD)], None, {"failure": True}),
        (job("Failed", 10), [fetch_pod(RESET)], None, {"failure": True, "rerun_in": 50.0}),
        (job("Failed", 61), [fetch_pod(RESET)], None, {"failure": True, "rerun": True}),
        (job(), [fetch_pod(RESET), fetch_pod(None, created="2")], None, {"running": True}),
        (job("Complete", 50), [replica(12, 40)], KNOWN, {"known": True, "rerun": True}),
        (job("Complete", 50), [replica(12, 60)], KNOWN, {"known": True}),
        (job("Complete", 50), [replica(13, 40)], KNOWN, {"known": True}),
    ],
)
def test_what_the_job_says(
    live_job: Manifest | None, pods: list[Manifest], known: KnownModel | None, wanted: Any
) -> None:
    fetch = read_fetch(live_job, pods, known, known_model, NOW, 60)
    said = {
        "known": fetch.known is not None,
        "failure": fetch.failure is not None,
        "running": fetch.running_pod is not None,
        "rerun": fetch.must_rerun,
        "rerun_in": fetch.rerun_in_s,
    }
    assert {key: value for key, value in said.items() if value} == wanted


def test_the_last_whole_line_is_the_progress() -> None:
    first = FetchProgress(stage="download", done_bytes=1, total_bytes=9)
    second = FetchProgress(stage="download", done_bytes=2, total_bytes=9)
    lines = f"{first.model_dump_json()}\n{second.model_dump_json()}\n{{'torn"
    assert parse_progress(lines) == second
    assert parse_progress("") is None


async def test_progress_is_read_at_a_bounded_rate() -> None:
    time_s, reads = 0.0, 0
    cluster = FakeCluster(lambda: "")

    def count(_call: str, _moment: str) -> None:
        nonlocal reads
        reads += 1

    cluster.checkpoint = count
    reader = ProgressReader(cluster, lambda: time_s, 2.0)
    for _ in range(100):
        await reader.read(fetch_pod(None))
        time_s += 0.1
    assert reads == 5
    for number in range(50):
        await reader.read(fetch_pod(None, created=str(number)))
    assert reader.interval_s >= 10


def ready_pod(uid: str = "u", address: str = "127.0.0.1") -> Manifest:
    metadata = {"name": "p", "namespace": "n", "uid": uid, "labels": {LABEL_MODEL: "demo"}}
    return {"metadata": metadata, "spec": {}, "status": {"podIP": address}}


async def test_a_replica_is_asked_once_and_then_slowly() -> None:
    time_s = 0.0
    asked: list[str] = []
    learned = asyncio.Event()

    async def read(address: str) -> RuntimeReport | None:
        asked.append(address)
        return REPORT

    reports = Reports(lambda: time_s, 600)
    running = asyncio.create_task(reports.run(read, lambda _model: learned.set()))
    assert reports.of([ready_pod()]) is None
    await asyncio.wait_for(learned.wait(), 60)
    for _ in range(5):
        assert reports.of([ready_pod()]) == REPORT
    assert asked == ["127.0.0.1"]
    time_s = 601
    learned.clear()
    assert reports.of([ready_pod()]) == REPORT
    await asyncio.wait_for(learned.wait(), 60)
    assert len(asked) == 2
    running.cancel()


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (lambda: web.Response(text=REPORT.model_dump_json()), REPORT),
        (lambda: web.Response(text="{}"), None),
        (lambda: web.Response(status=503, text=REPORT.model_dump_json()), None),
        (lambda: web.Response(text=" " * (2 * MAX_BYTES) + REPORT.model_dump_json()), None),
        (lambda: web.Response(status=302, headers={"Location": "http://elsewhere/"}), None),
    ],
)
async def test_only_a_good_answer_is_a_report(answer: Any, wanted: RuntimeReport | None) -> None:
    async def handle(_: web.Request) -> web.Response:
        response: web.Response = answer()
        return response

    app = web.Application()
    app.add_routes([web.get("/v1/runtime", handle)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, own_address(0), RUNTIME_PORT).start()
    try:
        async with aiohttp.ClientSession() as session:
            assert await read_report(session, own_address(0)) == wanted
            assert await read_report(session, own_address(1)) is None
    finally:
        await runner.cleanup()


async def test_the_trust_key_is_made_once() -> None:
    cluster = FakeCluster(lambda: "2026-01-01T00:00:00Z")
    first = await ensure_trust_key(cluster, "system")
    assert await ensure_trust_key(cluster, "system") == first
    assert len(first) == 43
    assert cluster.writes == ["create Secret system/terrace-trust"]


async def test_two_operators_agree_on_the_trust_key() -> None:
    cluster = FakeCluster(lambda: "2026-01-01T00:00:00Z")
    theirs = await ensure_trust_key(cluster, "system")
    stored = cluster.objects.pop((SECRET, Key("system", "terrace-trust")))

    def late(call: str, moment: str) -> None:
        if call.startswith("create") and moment == "before":
            cluster.objects[SECRET, Key("system", "terrace-trust")] = stored

    cluster.checkpoint = late
    assert await ensure_trust_key(cluster, "system") == theirs
    with pytest.raises(NotFoundError):
        await cluster.get(SECRET, Key("other", "terrace-trust"))


async def test_a_secret_without_a_key_is_said_with_the_way_out() -> None:
    cluster = FakeCluster(lambda: "2026-01-01T00:00:00Z")
    metadata = {"name": "terrace-trust", "namespace": "system"}
    cluster.put_new(SECRET, {"metadata": metadata, "data": {"ed25519": "c2hvcnQ="}})
    with pytest.raises(BadTrustKeyError, match="delete it"):
        await ensure_trust_key(cluster, "system")
