"""This machine: what a control group allows, and devices that are not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.cli.machine import cgroup_limits, this_machine

if TYPE_CHECKING:
    from pathlib import Path


def group(path: Path, **files: str) -> None:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("_", ".", 1)).write_text(text)


def test_the_least_of_all_groups_above_counts(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/pod/container\n")
    group(root / "pod", cpu_max="150000 100000\n", memory_max="max\n")
    group(root / "pod/container", cpu_max="max 100000\n", memory_max="1073741824\n")
    assert cgroup_limits(root, own) == (1500, 1 << 30)


def test_a_group_of_another_namespace_is_read_at_the_mount(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/../../other\n")
    group(root, memory_max="4096\n")
    group(tmp_path / "other", memory_max="1\n")
    assert cgroup_limits(root, own) == (None, 4096)


def test_version_1_is_read_and_its_no_limit_is_none(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("4:memory:/a\n3:cpu,cpuacct:/a\n")
    (root / "memory/a").mkdir(parents=True)
    (root / "memory/a/memory.limit_in_bytes").write_text("2048")
    (root / "memory/memory.limit_in_bytes").write_text("9223372036854771712")
    assert cgroup_limits(root, own) == (None, 2048)


def test_no_groups_are_no_limits(tmp_path: Path) -> None:
    assert cgroup_limits(tmp_path / "none", tmp_path / "nothing") == (None, None)


def test_what_cannot_be_read_is_no_limit(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/\n")
    group(root, cpu_max="odd\n", memory_max="-5\n")
    assert cgroup_limits(root, own) == (None, None)


def test_this_machine_has_something() -> None:
    found = this_machine()
    assert found.shape.cpu_millis > 0
    assert found.shape.memory_bytes > 1 << 20
    assert found.shape.devices is not None or any("NVIDIA" in note for note in found.notes)
