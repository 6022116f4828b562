"""What replicas took is kept in status.measured and serves other models of the same file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.controller_objects import DIGEST, model, offload_plan, pool
from terrace.api.model import ModelSpec
from terrace.api.pool import Flavor, PoolSpec
from terrace.controller.cache import Cache
from terrace.controller.corrections import MAX_STATUSES, corrections_for, measured_status
from terrace.controller.kinds import MODEL, Manifest
from terrace.controller.manifests import Subject
from terrace.controller.placing import Decision
from terrace.planner.correction import STEP_BYTES
from terrace.planner.inputs import Correction
from terrace_runtime.contract import MemoryReport, RuntimeReport

if TYPE_CHECKING:
    from terrace.api.status import MeasuredStatus

MIB = 1 << 20
IMAGE = "terrace/runtime:1"
PLAN = offload_plan(anonymous_bytes=150 * MIB, corrected_host_bytes=16 * MIB)
PLACED = Decision(Flavor(name="cpu"), PLAN)


def report(peak: int, plan_digest: str = PLAN.digest) -> RuntimeReport:
    return RuntimeReport(
        build="terrace-0.1.0+llama.cpp-0c1e570",
        model="default/demo",
        model_digest=DIGEST,
        plan_digest=plan_digest,
        state="ready",
        context_tokens=2048,
        parallel=4,
        threads=3,
        memory=MemoryReport(anonymous_peak_bytes=peak),
    )


def subject(**changes: Any) -> Subject:
    spec = ModelSpec.model_validate(model()["spec"])
    pool_spec = PoolSpec.model_validate(pool(**changes)["spec"])
    return Subject(model(), spec, "default", pool_spec, IMAGE, "key", {"cuda": "mirror/cuda:1"})


def measured_model(name: str = "demo", **changes: Any) -> Manifest:
    values = {
        "image": IMAGE,
        "deviceClass": "cpu",
        "plannedHostBytes": 100 * MIB,
        "hostBytes": 120 * MIB,
    }
    stored = model(name)
    stored["status"] = {"model": {"digest": DIGEST}, "measured": values | changes}
    stored["metadata"] |= {"uid": name, "resourceVersion": "1"}
    return stored


def shown(status: MeasuredStatus | None) -> Manifest:
    assert status is not None
    return {"measured": status.model_dump(mode="json", by_alias=True)}


def test_a_report_of_the_running_plan_is_held_against_it() -> None:
    found = measured_status(report(140 * MIB), PLACED, IMAGE, {})
    assert found is not None
    assert (found.image, found.device_class) == (IMAGE, "cpu")
    assert (found.planned_host_bytes, found.host_bytes) == (134 * MIB, 140 * MIB)


@pytest.mark.parametrize(
    "told", [None, report(0), report(99 * MIB, plan_digest="another plan's")], ids=str
)
def test_without_numbers_about_this_plan_what_was_known_stays(told: RuntimeReport | None) -> None:
    before = shown(measured_status(report(140 * MIB), PLACED, IMAGE, {}))
    assert shown(measured_status(told, PLACED, IMAGE, before)) == before
    assert measured_status(told, PLACED, IMAGE, {}) is None


def test_a_peak_is_written_again_only_when_it_rose_by_a_step() -> None:
    before = shown(measured_status(report(140 * MIB), PLACED, IMAGE, {}))
    for peak in (20 * MIB, 140 * MIB, 140 * MIB + STEP_BYTES - 1):
        assert shown(measured_status(report(peak), PLACED, IMAGE, before)) == before
    after = measured_status(report(140 * MIB + STEP_BYTES), PLACED, IMAGE, before)
    assert after is not None
    assert after.host_bytes == 140 * MIB + STEP_BYTES


def test_another_image_is_measured_anew() -> None:
    before = shown(measured_status(report(140 * MIB), PLACED, IMAGE, {}))
    after = measured_status(report(90 * MIB), PLACED, "terrace/runtime:2", before)
    assert after is not None
    assert after.host_bytes == 90 * MIB


def test_models_of_the_file_correct_by_the_most_that_any_took() -> None:
    models = [measured_model("a"), measured_model("b", hostBytes=150 * MIB)]
    assert corrections_for(models, DIGEST, subject()) == {"cpu": Correction(64 * MIB)}


@pytest.mark.parametrize(
    "changes",
    [
        {"image": "terrace/runtime:0"},
        {"image": "elsewhere/cuda:1"},
        {"hostBytes": 90 * MIB},
        {"hostBytes": "much"},
    ],
    ids=str,
)
def test_other_builds_smaller_peaks_and_broken_statuses_correct_nothing(
    changes: dict[str, Any],
) -> None:
    assert corrections_for([measured_model(**changes)], DIGEST, subject()) == {}


def test_images_of_backends_and_flavors_count_as_this_installations() -> None:
    for image in (f"{IMAGE}-cuda", "mirror/cuda:1"):
        assert corrections_for([measured_model(image=image)], DIGEST, subject())


def test_another_file_corrects_nothing() -> None:
    assert corrections_for([measured_model()], "e" * 64, subject()) == {}


def test_no_more_than_so_many_statuses_are_looked_at() -> None:
    models = [measured_model(str(i), hostBytes=90 * MIB) for i in range(MAX_STATUSES)]
    models.append(measured_model("last"))
    assert corrections_for(models, DIGEST, subject()) == {}


def test_the_cache_finds_models_whose_replicas_took_more_than_planned() -> None:
    cache = Cache()
    cache.put(MODEL, measured_model("more"))
    cache.put(MODEL, measured_model("less", hostBytes=90 * MIB))
    cache.put(MODEL, measured_model("device", hostBytes=1, deviceBytes=2, plannedDeviceBytes=1))
    cache.put(MODEL, measured_model("odd", hostBytes=None))
    found = [one["metadata"]["name"] for one in cache.models_exceeding(DIGEST)]
    assert found == ["device", "more"]
    assert cache.models_exceeding("e" * 64) == []
