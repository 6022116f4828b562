"""A node's /proc, /sys and /dev as folders, with the files' texts as real kernels wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

V2_MOUNT = (
    "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw"
)
V1_MOUNTS = "\n".join(
    f"{33 + at} 32 0:{29 + at} / /sys/fs/cgroup/{name} rw,relatime shared:{9 + at}"
    f" - cgroup cgroup rw,{name}"
    for at, name in enumerate(("cpu,cpuacct", "cpuset", "memory"))
)


def tree(
    root: Path, *, membership: str, mounts: str, groups: Mapping[str, Mapping[str, str]]
) -> Path:
    """``groups``: texts by folder below /sys/fs/cgroup, then by file name."""
    write(root, "proc/self/cgroup", membership)
    write(root, "proc/self/mountinfo", f"22 27 0:21 / /proc rw - proc proc rw\n{mounts}\nodd row\n")
    for folder, files in groups.items():
        (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write(root, f"sys/fs/cgroup/{folder}/{name}", text)
    return root


def write(root: Path, path: str, text: str) -> None:
    """One file with the folders above it."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text if text.endswith("\n") else f"{text}\n")


POD = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice"
BOX = f"{POD}/cri-containerd-abc.scope"


def pod_on_v2(root: Path, **changes: Mapping[str, str]) -> Path:
    """A pod seen from its node: 2 CPUs and 1 GiB for the container, 1.5 CPUs for the pod."""
    groups: dict[str, Mapping[str, str]] = {
        ".": {},
        POD: {"cpu.max": "150000 100000", "memory.max": "max", **changes.get("pod", {})},
        BOX: {
            "cpu.max": "200000 100000",
            "cpu.stat": (
                "usage_usec 9\nnr_periods 40\nnr_throttled 10\nthrottled_usec 2500000\n"
                "nr_bursts 0\nburst_usec 0"
            ),
            "cpuset.cpus.effective": "0-3,8",
            "memory.max": "1073741824",
            "memory.high": "max",
            "memory.current": "734003200",
            "memory.peak": "900000000",
            "memory.stat": "anon 500000000\nfile 200000000\ninactive_file 104857600",
            "memory.events": "low 0\nhigh 0\nmax 17\noom 3\noom_kill 2\noom_group_kill 0",
            "cpu.pressure": (
                "some avg10=12.50 avg60=3.00 avg300=0.70 total=5000000\n"
                "full avg10=0.00 avg60=0.00 avg300=0.00 total=0"
            ),
            "memory.pressure": (
                "some avg10=1.00 avg60=0.00 avg300=0.00 total=250000\n"
                "full avg10=0.50 avg60=0.00 avg300=0.00 total=125000"
            ),
            **changes.get("box", {}),
        },
    }
    return tree(root, membership=f"0::/{BOX}", mounts=V2_MOUNT, groups=groups)


def docker_on_v1(root: Path) -> Path:
    """A container without a namespace of its own: the mount shows its group as the top."""
    mounts = "\n".join(
        f"{700 + at} 690 0:{29 + at} /docker/abc /sys/fs/cgroup/{name} ro,relatime master:{9 + at}"
        f" - cgroup cgroup rw,{name}"
        for at, name in enumerate(("cpu,cpuacct", "cpuset", "memory"))
    )
    groups = {
        "cpu,cpuacct": {
            "cpu.cfs_quota_us": "350000",
            "cpu.cfs_period_us": "100000",
            "cpu.stat": "nr_periods 8\nnr_throttled 2\nthrottled_time 1500000000",
        },
        "cpuset": {"cpuset.cpus": "0-7", "cpuset.effective_cpus": "0-5"},
        "memory": {
            "memory.limit_in_bytes": "9223372036854771712",
            "memory.usage_in_bytes": "300000000",
            "memory.max_usage_in_bytes": "400000000",
            "memory.failcnt": "5",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1",
            "memory.stat": (
                "inactive_file 1\nhierarchical_memory_limit 536870912\n"
                "total_inactive_file 100000000"
            ),
        },
    }
    membership = "5:memory:/docker/abc\n4:cpuset:/docker/abc\n3:cpu,cpuacct:/docker/abc"
    return tree(root, membership=membership, mounts=mounts, groups=groups)
