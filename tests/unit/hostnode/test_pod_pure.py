"""The pure parts of the pod runner, without processes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.host_pods import container, pod
from terrace.local.pods.addresses import AddressPool, NoAddressError
from terrace.local.pods.backoff import Backoff
from terrace.local.pods.environment import expand
from terrace.local.pods.files import File, publish
from terrace.local.pods.images import (
    InvalidImageMapError,
    UnknownImageError,
    load_image_map,
    repository,
)
from terrace.local.pods.probes import ProbeKind, ProbeMachine
from terrace.local.pods.spec import Action, InvalidPodError, Probe, parse_pod
from terrace.local.pods.states import Running, Terminated, View, Waiting
from terrace.local.pods.status import Observed, phase, quality_of_service, render

if TYPE_CHECKING:
    from pathlib import Path

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("$(A)$(A)x", "11x"),
        ("$(NO)", "$(NO)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A $", "$A $"),
        ("$(A", "$(A"),
        ("$$", "$"),
    ],
)
def test_expansion_follows_the_api_documentation(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1"}) == expanded


@given(st.text(alphabet="$()AB", max_size=12))
def test_expansion_never_expands_twice(text: str) -> None:
    assert expand(text, {"A": "$(B)", "B": "!"}).count("!") <= text.count("$(B)")


def test_crash_back_off_doubles_to_its_maximum_and_forgets_after_quiet() -> None:
    backoff = Backoff()
    waits, moment = [], 0.0
    for _ in range(8):
        waits.append(backoff.after(moment))
        moment += waits[-1] + 1.0
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]
    assert backoff.after(moment + 601) == 0
    assert backoff.after(moment + 602) == 10


@given(st.lists(st.floats(0, 2000), max_size=50))
def test_crash_back_off_stays_within_its_bounds(lives: list[float]) -> None:
    backoff, moment = Backoff(base_s=10, max_s=300), 0.0
    for life in lives:
        moment += life
        wait_s = backoff.after(moment)
        assert wait_s == 0 or 10 <= wait_s <= 300
        moment += wait_s


def machine(kind: ProbeKind, **fields: Any) -> ProbeMachine:
    return ProbeMachine(kind, Probe(Action(sleep_s=0), **fields), started=100.0)


def test_a_probe_is_due_after_its_delay_and_then_each_period() -> None:
    one = machine(ProbeKind.READINESS, initial_delay_s=5, period_s=2)
    assert one.due == 105
    one.record(is_success=True, asked=105.5)
    assert one.due == 107.5


def test_readiness_changes_at_its_thresholds_only() -> None:
    one = machine(ProbeKind.READINESS, success_threshold=2, failure_threshold=3)
    answers = [True, True, False, False, True, False, False, False, True, True]
    changes = [one.record(is_success=answer, asked=0) for answer in answers]
    assert changes == [False, True, False, False, False, False, False, True, False, True]
    assert not one.is_fatal


def test_liveness_is_innocent_until_its_threshold() -> None:
    one = machine(ProbeKind.LIVENESS, failure_threshold=2)
    assert one.holds
    one.record(is_success=False, asked=0)
    assert not one.is_fatal
    one.record(is_success=False, asked=0)
    assert one.is_fatal


def test_a_startup_probe_settles_with_its_first_success() -> None:
    one = machine(ProbeKind.STARTUP, failure_threshold=2)
    one.record(is_success=False, asked=0)
    assert not one.is_settled
    one.record(is_success=True, asked=0)
    assert one.is_settled
    assert not one.is_fatal


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("terrace/runtime:0.1.0", "terrace/runtime"),
        ("registry.example:5000/terrace/runtime:0.1.0", "terrace/runtime"),
        ("localhost/terrace/runtime", "terrace/runtime"),
        ("terrace/runtime@sha256:abc", "terrace/runtime"),
        ("nginx", "nginx"),
        ("docker.io/library/nginx:1@sha256:0", "library/nginx"),
    ],
)
def test_an_image_is_known_by_its_repository(image: str, name: str) -> None:
    assert repository(image) == name


def test_the_image_map_of_a_file_adds_to_ours(tmp_path: Path) -> None:
    file = tmp_path / "images.json"
    file.write_text('{"test/sh": ["/bin/sh", "-c"]}')
    images = load_image_map(file)
    assert images.argv("example.org/test/sh:9") == ("/bin/sh", "-c")
    assert images.argv("terrace/gateway:0.1.0")[1:] == ("-m", "terrace.gateway")
    with pytest.raises(UnknownImageError, match="Known images: terrace/gateway"):
        images.argv("nginx")


@pytest.mark.parametrize("content", ["[]", "{", '{"a": []}', '{"a": [1]}', '{"a": 5}'])
def test_a_broken_image_map_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "images.json"
    file.write_text(content)
    with pytest.raises(InvalidImageMapError, match=r"images\.json"):
        load_image_map(file)


def test_addresses_are_given_once_and_rest_before_they_return() -> None:
    pool = AddressPool.parse("127.9.1.0-127.9.1.3")
    first, second = pool.take(), pool.take()
    assert (first, second) == ("127.9.1.0", "127.9.1.1")
    pool.give_back(first)
    assert pool.take() == "127.9.1.2"
    assert pool.take(preferred=first) == first
    pool.take()
    with pytest.raises(NoAddressError, match="all 4 pod addresses"):
        pool.take()


@pytest.mark.parametrize("text", ["127.0.0.1", "10.0.0.1-10.0.0.9", "127.0.0.9-127.0.0.1", "x-y"])
def test_an_address_range_must_be_loopback_and_in_order(text: str) -> None:
    with pytest.raises(ValueError, match="is not a range of loopback addresses"):
        AddressPool.parse(text)


def test_publishing_switches_all_files_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    assert publish(folder, {"a": File(b"1"), "deep/b": File(b"2", 0o400)})
    before = (folder / "..data").resolve()
    assert not publish(folder, {"a": File(b"1"), "deep/b": File(b"2", 0o400)})
    assert (folder / "..data").resolve() == before
    assert publish(folder, {"a": File(b"3")})
    assert (folder / "a").read_bytes() == b"3"
    assert not before.exists()
    assert {path.name for path in folder.iterdir() if not path.name.startswith("..")} == {"a"}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", ""])
def test_a_file_cannot_leave_its_volume(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leaves its volume"):
        publish(tmp_path / "v", {name: File(b"")})


def ended(code: int) -> Terminated:
    return Terminated(code, "Error", NOON, NOON)


def observed(main: list[View], init: list[View] | None = None, **fields: Any) -> Observed:
    return Observed(
        init=init or [],
        main=main,
        is_initialized=fields.pop("is_initialized", True),
        pod_ip="127.1.1.1",
        host_ip="127.0.0.1",
        started_at=NOON,
        **fields,
    )


def view(state: Any, **fields: Any) -> View:
    return View("c", "test/sh", state, **fields)


@pytest.mark.parametrize(
    ("main", "expected"),
    [
        ([view(Waiting("ContainerCreating"))], "Pending"),
        ([view(Running(NOON))], "Running"),
        ([view(Waiting("CrashLoopBackOff"), last=ended(1))], "Running"),
        ([view(ended(0), is_final=True)], "Succeeded"),
        ([view(ended(0), is_final=True), view(ended(1), is_final=True)], "Failed"),
        ([view(ended(0), is_final=True), view(Running(NOON))], "Running"),
        ([view(ended(1))], "Running"),
    ],
)
def test_the_phase_follows_from_the_containers(main: list[View], expected: str) -> None:
    assert phase(parse_pod(pod(container())), observed(main)) == expected


def test_a_condition_keeps_its_transition_time_while_it_holds() -> None:
    one = parse_pod(pod(container()))
    first = render(one, observed([view(Running(NOON), is_ready=True)]), [], NOON)
    later = NOON + timedelta(seconds=9)
    second = render(one, observed([view(Running(NOON))]), first["conditions"], later)
    times = {entry["type"]: entry["lastTransitionTime"] for entry in second["conditions"]}
    assert times["Initialized"] == "2026-01-01T12:00:00Z"
    assert times["Ready"] == "2026-01-01T12:00:09Z"
    ready = next(entry for entry in second["conditions"] if entry["type"] == "Ready")
    assert ready["reason"] == "ContainersNotReady"
    assert ready["message"] == "containers with unready status: [c]"


def test_a_readiness_gate_holds_ready_back_until_someone_sets_it() -> None:
    one = parse_pod(pod(container(), readinessGates=[{"conditionType": "example.com/ok"}]))
    state = observed([view(Running(NOON), is_ready=True)])

    def ready(earlier: list[dict[str, Any]]) -> str:
        conditions = render(one, state, earlier, NOON)["conditions"]
        return next(str(entry["status"]) for entry in conditions if entry["type"] == "Ready")

    assert ready([]) == "False"
    assert ready([{"type": "example.com/ok", "status": "True"}]) == "True"


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"memory": "1Gi"}}, "Burstable"),
    ],
)
def test_the_quality_of_service_class_follows_the_api(
    resources: dict[str, Any], expected: str
) -> None:
    assert quality_of_service(parse_pod(pod(container(resources=resources)))) == expected


def test_a_grpc_probe_is_refused_by_name() -> None:
    with pytest.raises(InvalidPodError, match=r"spec.containers\[0\].livenessProbe: .* not grpc"):
        parse_pod(pod(container(livenessProbe={"grpc": {"port": 1}})))
