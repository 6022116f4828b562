"""The pure parts of the agent: Node, volumes, RBAC, command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from terrace.local.hostnode import parse_arguments
from terrace.local.node_pods import as_patch
from terrace.local.node_rbac import bootstrap_manifests
from terrace.local.node_status import (
    Machine,
    Pressures,
    allocatable,
    capacity,
    keep_transitions,
    machine,
    node_object,
    node_status,
    pressures,
)
from terrace.local.provisioner import grown_size, is_due, obstacle, volume_for

if TYPE_CHECKING:
    from pathlib import Path

MACHINE = Machine(
    num_cpus=4,
    memory_bytes=8 << 30,
    disk_bytes=100 << 30,
    architecture="amd64",
    kernel="6.1",
    os_image="Linux",
    boot_id="b",
    machine_id="m",
)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def status(pressed: Pressures | None = None, moment: datetime = NOON) -> dict[str, Any]:
    return node_status(MACHINE, pressed or Pressures(), "127.9.0.1", 4242, moment, "0.1.0")


def test_the_node_offers_what_it_has_less_what_the_control_plane_needs() -> None:
    assert capacity(MACHINE)["memory"] == f"{8 << 20}Ki"
    assert allocatable(MACHINE)["memory"] == f"{(8 << 20) - (512 << 10)}Ki"
    assert allocatable(MACHINE)["cpu"] == capacity(MACHINE)["cpu"] == "4"


def test_the_node_carries_its_labels_and_its_logs_port() -> None:
    labels = node_object("host", MACHINE)["metadata"]["labels"]
    assert labels == {
        "kubernetes.io/hostname": "host",
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "terrace.dev/host-node": "true",
    }
    assert status()["daemonEndpoints"]["kubeletEndpoint"]["Port"] == 4242


def test_pressure_becomes_a_condition_and_unchanged_ones_keep_their_time() -> None:
    later = NOON + timedelta(seconds=9)
    fresh = keep_transitions(status(Pressures(disk=True), later), status())
    found = {one["type"]: one for one in fresh["conditions"]}
    assert found["DiskPressure"]["status"] == "True"
    assert found["DiskPressure"]["lastTransitionTime"] == "2026-01-01T12:00:09Z"
    assert found["Ready"]["lastTransitionTime"] == "2026-01-01T12:00:00Z"
    assert found["Ready"]["lastHeartbeatTime"] == "2026-01-01T12:00:09Z"


def test_this_machine_can_be_read(tmp_path: Path) -> None:
    found = machine(tmp_path)
    assert found.num_cpus >= 1
    assert found.memory_bytes > 1 << 28
    assert not pressures(tmp_path).pids


def claim(**fields: Any) -> dict[str, Any]:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "3Gi"}}}
    meta = {"name": "c", "namespace": "n", "uid": "u", **fields.pop("metadata", {})}
    return {"metadata": meta, "spec": spec | fields}


def storage_class(**fields: Any) -> dict[str, Any]:
    return {"metadata": {"name": "s"}, "provisioner": "terrace.dev/local", **fields}


def test_a_volume_is_bound_to_its_claim_and_to_the_node(tmp_path: Path) -> None:
    volume = volume_for(claim(), storage_class(reclaimPolicy="Retain"), "host", tmp_path)
    spec = volume["spec"]
    assert volume["metadata"]["name"] == "pvc-u"
    assert spec["local"] == {"path": f"{tmp_path}/pvc-u"}
    assert spec["claimRef"]["uid"] == "u"
    assert spec["capacity"] == {"storage": "3Gi"}
    assert spec["accessModes"] == ["ReadWriteMany"]
    assert spec["persistentVolumeReclaimPolicy"] == "Retain"
    assert "'host'" in str(spec["nodeAffinity"])


SELECTED = {"annotations": {"volume.kubernetes.io/selected-node": "host"}}


@pytest.mark.parametrize(
    ("one", "of_class", "due"),
    [
        (claim(), storage_class(), True),
        (claim(), storage_class(volumeBindingMode="WaitForFirstConsumer"), False),
        (claim(metadata=SELECTED), storage_class(volumeBindingMode="WaitForFirstConsumer"), True),
        (claim(), storage_class(provisioner="other"), False),
        (claim(volumeName="pv"), storage_class(), False),
        (claim(metadata={"deletionTimestamp": "t"}), storage_class(), False),
    ],
)
def test_a_volume_is_made_when_the_class_says_so(
    one: dict[str, Any], of_class: dict[str, Any], *, due: bool
) -> None:
    assert is_due(one, of_class, "host") is due


@pytest.mark.parametrize(
    ("status", "grown"),
    [
        ({"phase": "Bound", "capacity": {"storage": "1Gi"}}, "3Gi"),
        ({"phase": "Bound", "capacity": {"storage": "3072Mi"}}, ""),
        ({"phase": "Bound", "capacity": {"storage": "4Gi"}}, ""),
        ({"phase": "Bound"}, ""),
        ({"phase": "Pending", "capacity": {"storage": "1Gi"}}, ""),
        ({}, ""),
    ],
)
def test_a_bound_claim_that_asks_for_more_grows(status: dict[str, Any], grown: str) -> None:
    assert grown_size({**claim(), "status": status}) == grown


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"volumeMode": "Block"}, "volumeMode"),
        ({"selector": {"matchLabels": {"a": "b"}}}, "spec.selector"),
        ({"dataSource": {"kind": "VolumeSnapshot"}}, "dataSource"),
    ],
)
def test_what_a_folder_cannot_be_is_told(fields: dict[str, Any], word: str) -> None:
    assert word in obstacle(claim(**fields))
    assert not obstacle(claim())


def test_a_status_patch_clears_what_a_condition_no_longer_says() -> None:
    ready = {"type": "Ready", "status": "True"}
    body = as_patch("u", {"conditions": [ready], "podIPs": [{"ip": "1"}]})
    assert body["status"]["conditions"] == [{"reason": None, "message": None, **ready}]
    assert body["status"]["podIPs"][0] == {"$patch": "replace"}
    assert body["metadata"] == {"uid": "u"}


def test_the_agents_role_is_no_wider_than_the_provisioner_needs() -> None:
    role = next(one for one in bootstrap_manifests() if one["kind"] == "ClusterRole")
    granted = {(name, verb) for rule in role["rules"] for name in rule["resources"]
               for verb in rule["verbs"]}  # fmt: skip
    assert {name for name, verb in granted if verb in {"create", "delete", "patch", "update"}} == {
        "persistentvolumes",
        "persistentvolumeclaims/status",
        "events",
    }
    assert not any("*" in pair for pair in granted)


REQUIRED = {
    "--kubeconfig": "k",
    "--dir": "d",
    "--name": "host",
    "--address": "127.9.0.1",
    "--pod-addresses": "127.9.1.0-127.9.1.9",
    "--serving-cert": "c",
    "--serving-key": "k",
    "--client-ca": "a",
    "--api-server": "https://127.0.0.1:6443",
}


def words(**changes: str) -> list[str]:
    chosen = REQUIRED | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return [word for pair in chosen.items() for word in pair]


def test_the_command_line_is_parsed() -> None:
    options = parse_arguments(words(backoff="0.5"))
    assert options.pod_addresses.size == 10
    assert options.backoff == 0.5
    assert options.images is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pod_addresses": "10.0.0.1-10.0.0.2"}, "not a range of loopback addresses"),
        ({"images": "/nowhere.json"}, "image map /nowhere.json"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(
    changes: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(words(**changes))
    assert message in capsys.readouterr().err
