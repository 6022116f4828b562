"""CPUs, cores, NUMA nodes, huge pages and shared memory, from recorded trees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.node_trees import write
from terrace_runtime.node.files import number_list, shown_list
from terrace_runtime.node.machine import NumaNode, machine

if TYPE_CHECKING:
    from pathlib import Path


def two_sockets(root: Path) -> Path:
    """Two sockets with two cores of two threads each."""
    write(
        root,
        "proc/meminfo",
        "MemTotal:       65536000 kB\nMemFree:  1 kB\nHugePages_Total:     512\n"
        "HugePages_Free:      500\nHugePages_Rsvd:        0\nHugepagesize:       2048 kB",
    )
    for cpu in range(8):
        low = cpu % 4
        topology = f"sys/devices/system/cpu/cpu{cpu}/topology"
        write(root, f"{topology}/thread_siblings_list", f"{low},{low + 4}")
    for node, cpus in ((0, "0-1,4-5"), (1, "2-3,6-7")):
        folder = f"sys/devices/system/node/node{node}"
        write(root, f"{folder}/cpulist", cpus)
        write(root, f"{folder}/meminfo", f"Node {node} MemTotal:       32768000 kB\nNode 0 X: 1 kB")
    write(root, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
    (root / "dev/shm").mkdir(parents=True)
    return root


def test_a_machine_with_two_sockets(tmp_path: Path) -> None:
    found = machine(two_sockets(tmp_path), frozenset({0, 1, 4, 6}))
    assert found.cores == 3
    assert found.numa == (
        NumaNode(0, frozenset({0, 1, 4}), 32768000 << 10),
        NumaNode(1, frozenset({6}), 32768000 << 10),
    )
    assert (found.huge_pages, found.free_huge_pages, found.huge_page_bytes) == (512, 500, 2 << 20)
    assert found.transparent_huge_pages == "madvise"
    assert found.memory_bytes == 65536000 << 10
    assert found.shared_memory_bytes is not None


def test_a_kernel_that_tells_nothing(tmp_path: Path) -> None:
    found = machine(tmp_path, frozenset({0, 1}))
    assert (found.cores, found.numa, found.huge_pages) == (2, (), 0)
    assert (found.memory_bytes, found.transparent_huge_pages) == (0, "")
    assert found.shared_memory_bytes is None


@pytest.mark.parametrize(
    ("words", "numbers", "shown"),
    [
        ("0-3,8", {0, 1, 2, 3, 8}, "0-3,8"),
        ("5", {5}, "5"),
        ("", set(), ""),
        ("3-1,x,-2,1-", set(), ""),
        ("0-99999999999", set(), ""),
        ("0,1,2\n7", {0, 1, 2, 7}, "0-2,7"),
    ],
)
def test_lists_of_cpus(words: str, numbers: set[int], shown: str) -> None:
    assert number_list(words) == numbers
    assert shown_list(frozenset(numbers)) == shown
