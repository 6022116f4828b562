"""Projector, draft and adapters: what is fetched, by which Job, and what status says of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from support.controller_objects import (
    condition,
    facts,
    fetched_file,
    fetched_for,
    model,
    not_fetched,
)
from terrace.api.model import ModelSpec
from terrace.controller.cache import adapter_names, claimed_names
from terrace.controller.claims import Claims
from terrace.controller.diff import leftovers
from terrace.controller.facts import PATIENCE_S, Fetch, KnownModel, known_file, read_fetch
from terrace.controller.files import (
    Extras,
    adapter_statuses,
    draft_status,
    extra_files,
    read_extras,
    stored_projector,
)
from terrace.controller.findings import Findings
from terrace.controller.kinds import JOB, Manifest
from terrace.controller.progress import STALL_S, Progress
from terrace.controller.status import model_status
from terrace_runtime.contract import FetchOutcome, FetchProgress, FetchSpec

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
PROJECTOR: dict[str, Any] = {"projector": {"uri": "https://host/mmproj.gguf"}}
DRAFT: dict[str, Any] = {"draft": {"uri": "demo://draft"}, "speculation": {"mode": "Draft"}}


def adapter(name: str, **source: Any) -> Manifest:
    return {"name": name, "source": {"uri": f"https://host/{name}.gguf"} | source}


def spec_of(**fields: Any) -> ModelSpec:
    return ModelSpec.model_validate(model(**fields)["spec"])


def job(name: str, *, ended: str = "") -> Manifest:
    stamp = NOW.strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [{"type": ended, "status": "True", "lastTransitionTime": stamp}] if ended else []
    claim = {"name": "model", "persistentVolumeClaim": {"claimName": "default-models"}}
    secret = {"name": "secret", "secret": {"secretName": "key"}}
    return {
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "spec": {"template": {"spec": {"volumes": [claim, secret]}}},
        "status": {"conditions": conditions},
    }


def pod(job_name: str, outcome: FetchOutcome | None = None, **status: Any) -> Manifest:
    state: Manifest = {"running": {}}
    if outcome is not None:
        state = {"terminated": {"exitCode": 0, "message": outcome.model_dump_json()}}
    entry = {"name": "fetch", "state": state}
    return {
        "metadata": {
            "name": f"{job_name}-x",
            "ownerReferences": [{"uid": f"uid-{job_name}", "controller": True}],
        },
        "spec": {},
        "status": {"phase": "Running", "containerStatuses": [entry], **status},
    }


def read(outcomes: dict[str, FetchOutcome], status: Manifest | None = None, **spec: Any) -> Extras:
    """Extras of a model whose Jobs have ended; ``outcomes``: by URI."""
    parsed, stored = spec_of(**spec), model(**spec) | {"status": status or {}}
    jobs, pods = {}, []
    for file in extra_files("demo", parsed):
        jobs[file.job] = job(file.job, ended="Complete" if file.source.uri in outcomes else "")
        pods.append(pod(file.job, outcomes.get(file.source.uri)))
    return read_extras(stored, parsed, jobs, pods, NOW, 60)


def test_each_source_has_one_job_whose_name_is_a_label_s_value_even_for_the_longest_model() -> None:
    same = {"uri": "https://host/same.gguf"}
    adapters = [adapter("a"), adapter("b", **same), adapter("c", **same)]
    spec = spec_of(**PROJECTOR, **DRAFT, adapters=adapters)
    jobs = [file.job for file in extra_files("m" * 40, spec)]
    assert len(jobs) == len(set(jobs)) == 4
    assert all(len(name) <= 63 for name in jobs)
    assert [file.title for file in extra_files("m", spec)] == [
        "the projector",
        "the draft",
        "adapter a",
        "adapter b",
    ]


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"secretRef": {"name": "other"}}, True),
        ({"sha256": "b" * 64}, False),
        ({"uri": "https://host/b.gguf"}, False),
    ],
)
def test_a_job_is_named_by_what_the_file_is_and_not_by_who_may_read_it(
    change: Manifest,
    is_same: bool,  # noqa: FBT001 -- a parameter of the case
) -> None:
    names = [
        [file.job for file in extra_files("demo", spec_of(adapters=[adapter("a", **each)]))]
        for each in ({}, change)
    ]
    assert (names[0] == names[1]) == is_same


def test_what_is_fetched_survives_the_way_through_status() -> None:
    spec: dict[str, Any] = {**PROJECTOR, **DRAFT, "adapters": [adapter("a"), adapter("b")]}
    uris = [
        "https://host/mmproj.gguf",
        "demo://draft",
        "https://host/a.gguf",
        "https://host/b.gguf",
    ]
    roles: list[Any] = ["projector", "draft", "adapter", "adapter"]
    first = read(
        {u: fetched_for(FetchSpec(uri=u, role=r)) for u, r in zip(uris, roles, strict=True)}, **spec
    )
    assert first.are_known
    draft = draft_status(first)
    projector = stored_projector(first)
    assert draft is not None
    assert projector is not None
    stored = {
        "projector": projector.model_dump(mode="json", by_alias=True),
        "draft": draft.model_dump(mode="json", by_alias=True),
        "adapters": [
            each.model_dump(mode="json", by_alias=True) for each in adapter_statuses(first)
        ],
    }
    # The Jobs and their pods are gone.
    later = read_extras(model(**spec) | {"status": stored}, spec_of(**spec), {}, [], NOW, 60)
    assert later.are_known
    assert adapter_statuses(later) == adapter_statuses(first)
    assert draft_status(later) == draft
    assert stored_projector(later) == projector
    assert later.projector_facts == first.projector_facts
    other: dict[str, Any] = {**spec, "projector": {"uri": "https://host/other.gguf"}}
    assert not read_extras(
        model(**other) | {"status": stored}, spec_of(**other), {}, [], NOW, 60
    ).are_known


@pytest.mark.parametrize(
    "source",
    [{"uri": "https://host/other.gguf"}, {"sha256": "f" * 64}],
)
def test_what_status_holds_of_another_source_does_not_count(source: Manifest) -> None:
    held = {
        "name": "a",
        "uri": "https://host/a.gguf",
        "path": "/models/a",
        "digest": "a" * 64,
        "fileBytes": 1,
    }
    assert read({}, {"adapters": [held]}, adapters=[adapter("a")]).are_known
    assert not read({}, {"adapters": [held]}, adapters=[adapter("a", **source)]).are_known
    assert not read({}, {"adapters": [{"name": 5}]}, adapters=[adapter("a")]).are_known


def test_names_of_adapters_are_asked_for_beside_the_model_s_own() -> None:
    named = model(adapters=[adapter("a"), adapter("b")])
    assert claimed_names(named) == ("demo", "a", "b")
    assert claimed_names(model(servedNames=["x"], adapters=[adapter("a")])) == ("x", "a")
    assert adapter_names({"spec": {"adapters": [5, {"name": 5}]}, "metadata": {"name": "m"}}) == ()


def test_a_file_of_the_wrong_kind_is_no_adapter() -> None:
    assert known_file(fetched_file()) is not None
    assert known_file(FetchOutcome(path="/x", facts=facts())) is None


@pytest.mark.parametrize(
    ("after_s", "words", "look_in"),
    [
        (1.0, "the fetch pod starts, and mounts ", PATIENCE_S - 1),
        (PATIENCE_S + 1, "the fetch pod waits for its volumes: ", None),
    ],
)
def test_a_pod_that_mounts_a_secret_names_it_at_once_and_suspects_it_later(
    after_s: float, words: str, look_in: float | None
) -> None:
    bound = (NOW - timedelta(seconds=after_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": bound}]
    creating = pod("j", phase="Pending", containerStatuses=[], conditions=conditions)
    fetch = read_fetch(job("j"), [creating], None, known_file, NOW, 60)
    assert fetch.waiting.startswith(f"{words}Secret 'key' and claim 'default-models'")
    assert fetch.rerun_in_s == look_in


def test_a_pod_without_a_secret_starts_without_a_word() -> None:
    open_job = job("j")
    volumes = open_job["spec"]["template"]["spec"]["volumes"]
    volumes[:] = [volume for volume in volumes if "secret" not in volume]
    bound = (NOW - timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": bound}]
    creating = pod("j", phase="Pending", containerStatuses=[], conditions=conditions)
    assert read_fetch(open_job, [creating], None, known_file, NOW, 60).waiting == ""


def test_a_pod_that_mounts_an_image_alone_waits_for_its_node_to_pull_it() -> None:
    about_image = job("j")
    image = {"name": "model", "image": {"reference": "r.example/m:1"}}
    about_image["spec"]["template"]["spec"]["volumes"] = [image]
    bound = (NOW - timedelta(seconds=PATIENCE_S + 1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": bound}]
    creating = pod("j", phase="Pending", containerStatuses=[], conditions=conditions)
    said = read_fetch(about_image, [creating], None, known_file, NOW, 60).waiting
    assert said == "the fetch pod waits for its node to pull image 'r.example/m:1'"


def test_a_container_that_cannot_be_made_is_told_in_the_kubelet_s_words() -> None:
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "key" not found'}
    status = [{"name": "fetch", "state": {"waiting": waiting}}]
    blocked = pod("j", phase="Pending", containerStatuses=status)
    fetch = read_fetch(job("j"), [blocked], None, known_file, NOW, 60)
    assert fetch.waiting == 'CreateContainerConfigError: secret "key" not found'


def shown(extras: Extras, before: Manifest | None = None, **values: Any) -> Manifest:
    known = Fetch(known=KnownModel(facts(), "/models/x"))
    found = Findings(Claims(("demo",)), fetch=known, extras=extras, **values)
    live = model() | {"status": before or {}}
    live["metadata"] |= {"uid": "u", "generation": 1}
    return {"status": model_status(live, found, "", NOW)}


def test_a_condition_names_the_file_that_fails() -> None:
    gone = not_fetched("NotFound", "404", permanent=True)
    said = condition(shown(read({"https://host/a.gguf": gone}, adapters=[adapter("a")])), "Stalled")
    assert said["status"] == "True"
    assert said["message"].startswith("adapter a: 404; mend its source in the spec")


def test_a_download_that_stands_still_says_so_and_since_when() -> None:
    line = FetchProgress(
        stage="download", done_bytes=43, total_bytes=100, bytes_per_second=7, seconds_left=200
    )
    extras = read({}, adapters=[adapter("a")])
    moving = shown(extras, progress=Progress(line, 1.0))["status"]["download"]
    assert moving["summary"] == "43%, 7 B/s, 3m20s left"
    assert moving["file"] == "adapter a"
    assert "stalledSince" not in moving
    still = shown(extras, progress=Progress(line, STALL_S + 30))
    download = still["status"]["download"]
    assert download["summary"] == "43%, stalled"
    assert download["stalledSince"] == "2026-01-01T11:59:00Z"
    assert "stood still for 60 seconds" in condition(still, "ModelCached")["message"]
    # Another operator, which has seen less of it, keeps the time.
    later = shown(extras, still["status"], progress=Progress(line, STALL_S))
    assert later["status"]["download"]["stalledSince"] == "2026-01-01T11:59:00Z"


def test_a_job_of_a_file_that_is_named_no_more_is_left_over() -> None:
    live = {(JOB, name): {"metadata": {"name": name}} for name in ("demo-fetch", "demo-fetch-1")}
    wanted: list[Any] = [(JOB, {"metadata": {"name": "demo-fetch"}})]
    assert [step.manifest["metadata"]["name"] for step in leftovers(wanted, live, [])] == [
        "demo-fetch-1"
    ]
