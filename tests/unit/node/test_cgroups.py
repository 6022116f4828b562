"""Limits and use of our control groups, from recorded trees of every kind of node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.node_trees import BOX, POD, V1_MOUNTS, V2_MOUNT, docker_on_v1, pod_on_v2, tree
from terrace_runtime.node.cgroups import (
    CpuState,
    MemoryState,
    Pressure,
    cpu_state,
    find,
    kills,
    memory_state,
    pressure,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_version_2_tells_limits_use_and_waiting(tmp_path: Path) -> None:
    root = pod_on_v2(tmp_path)
    assert cpu_state(root) == CpuState(1.5, frozenset({0, 1, 2, 3, 8}), 40, 10, 2.5)
    assert memory_state(root) == MemoryState(
        limit_bytes=1 << 30,
        high_bytes=None,
        used_bytes=734003200,
        reclaimable_bytes=104857600,
        peak_bytes=900000000,
        kills=2,
        times_full=17,
    )
    assert pressure("cpu", root) == Pressure(0.125, 0.0, 5.0, 0.0)
    assert pressure("memory", root) == Pressure(0.01, 0.005, 0.25, 0.125)
    assert pressure("io", root) is None


def test_version_1_tells_a_limit_that_only_a_group_above_has(tmp_path: Path) -> None:
    root = docker_on_v1(tmp_path)
    assert cpu_state(root) == CpuState(3.5, frozenset(range(6)), 8, 2, 1.5)
    assert memory_state(root) == MemoryState(
        limit_bytes=512 << 20,
        used_bytes=300000000,
        reclaimable_bytes=100000000,
        peak_bytes=400000000,
        kills=1,
        times_full=5,
    )
    assert pressure("cpu", root) is None


@pytest.mark.parametrize(
    ("pod", "box", "limit"),
    [
        ("max", "max", None),
        ("4096", "max", 4096),
        ("max", "8192", 8192),
        ("4096", "8192", 4096),
        ("odd", "-", None),
    ],
)
def test_the_smallest_limit_on_the_way_up_counts(
    tmp_path: Path, pod: str, box: str, limit: int | None
) -> None:
    root = pod_on_v2(tmp_path, pod={"memory.max": pod}, box={"memory.max": box})
    assert memory_state(root).limit_bytes == limit


@pytest.mark.parametrize(
    ("pod", "box", "quota"),
    [
        ("max 100000", "max 100000", None),
        ("150000 100000", "max 100000", 1.5),
        ("max 100000", "50000 100000", 0.5),
        ("100000 0", "0 100000", None),
        ("nonsense", "", None),
    ],
)
def test_the_smallest_quota_on_the_way_up_counts(
    tmp_path: Path, pod: str, box: str, quota: float | None
) -> None:
    root = pod_on_v2(tmp_path, pod={"cpu.max": pod}, box={"cpu.max": box})
    assert cpu_state(root).quota == quota


@pytest.mark.parametrize(
    "membership",
    ["0::/", "0::/../../elsewhere", f"0::/{BOX}", "0::/kubepods/not/mounted/here"],
)
def test_a_container_that_sees_its_group_as_the_top_reads_it_there(
    tmp_path: Path, membership: str
) -> None:
    groups = {".": {"memory.max": "4096", "cpu.max": "100000 100000"}}
    root = tree(tmp_path, membership=membership, mounts=V2_MOUNT, groups=groups)
    assert memory_state(root).limit_bytes == 4096
    assert cpu_state(root).quota == 1.0


def test_nothing_above_the_mount_is_read(tmp_path: Path) -> None:
    root = pod_on_v2(tmp_path, box={"memory.max": "max"})
    (root / "sys/fs/memory.max").write_text("1")
    (root / "memory.max").write_text("1")
    assert memory_state(root).limit_bytes is None


def test_a_hybrid_node_has_its_limits_in_version_1_and_its_waiting_in_version_2(
    tmp_path: Path,
) -> None:
    unified = V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    groups = {
        "memory/pod/box": {"memory.limit_in_bytes": "8192"},
        "memory/pod": {"memory.limit_in_bytes": "4096"},
        "cpu,cpuacct/pod": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
        "unified/pod": {"cpu.pressure": "some avg10=50.00 avg60=0.00 avg300=0.00 total=1000000"},
    }
    root = tree(
        tmp_path,
        membership="9:name=systemd:/x\n5:memory:/pod/box\n3:cpu,cpuacct:/pod\n0::/pod",
        mounts=f"{V1_MOUNTS}\n{unified}",
        groups=groups,
    )
    assert memory_state(root) == MemoryState(limit_bytes=4096)
    assert cpu_state(root) == CpuState()
    assert pressure("cpu", root) == Pressure(0.5, 0.0, 1.0, 0.0)


def test_mounts_in_unusual_places_are_found(tmp_path: Path) -> None:
    mount = V2_MOUNT.replace("/sys/fs/cgroup", r"/sys/fs/cgroup/own\040place")
    groups = {f"own place/{POD}": {"memory.max": "64"}}
    root = tree(tmp_path, membership=f"0::/{POD}", mounts=mount, groups=groups)
    group = find("memory", root)
    assert group is not None
    assert group.folder == root / "sys/fs/cgroup/own place" / POD
    assert memory_state(root).limit_bytes == 64


def test_the_usual_mount_is_tried_where_mounts_cannot_be_read(tmp_path: Path) -> None:
    root = pod_on_v2(tmp_path)
    (root / "proc/self/mountinfo").unlink()
    assert memory_state(root).limit_bytes == 1 << 30


def test_without_control_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert cpu_state(tmp_path) == CpuState()
    assert memory_state(tmp_path) == MemoryState()
    assert kills(tmp_path) == 0
    assert find("cpu", tmp_path) is None


def test_this_machine_can_be_read() -> None:
    memory = memory_state()
    assert memory.limit_bytes is None or memory.limit_bytes > 0
    assert cpu_state().quota is None or cpu_state().quota
