"""What does not fit is said with both numbers; what fits is not mentioned."""

from __future__ import annotations

from typing import Any

import pytest

from support.runtime_http import config
from terrace_runtime.contract import KvTiers
from terrace_runtime.node.cgroups import CpuState, MemoryState
from terrace_runtime.node.fitting import refusal, usable_cpus, usable_threads, warnings
from terrace_runtime.node.machine import Machine, NumaNode

GIB = 1 << 30


def a_machine(**changes: Any) -> Machine:
    values: dict[str, Any] = {
        "cpus": frozenset(range(8)),
        "cores": 4,
        "memory_bytes": 64 * GIB,
        "huge_page_bytes": 2 << 20,
        "huge_pages": 0,
        "free_huge_pages": 0,
        "transparent_huge_pages": "madvise",
        "numa": (NumaNode(0, frozenset(range(8)), 64 * GIB), NumaNode(1, frozenset(), 64 * GIB)),
        "shared_memory_bytes": 64 << 20,
    }
    return Machine(**values | changes)


@pytest.mark.parametrize(
    ("cpus", "quota", "threads"),
    [
        (8, None, 8),
        (8, 4.0, 4),
        (8, 3.99, 4),
        (8, 3.9, 3),
        (8, 0.5, 1),
        (2, 100.0, 2),
        (1, None, 1),
    ],
)
def test_threads_never_exceed_the_quota(cpus: int, quota: float | None, threads: int) -> None:
    assert usable_threads(cpus, quota) == threads


def test_a_cpuset_narrows_the_mask_but_one_beside_it_does_not_count() -> None:
    mask = frozenset({0, 1, 2, 3})
    assert usable_cpus(mask, CpuState(allowed=frozenset({2, 3, 4}))) == {2, 3}
    assert usable_cpus(mask, CpuState(allowed=frozenset({9}))) == mask
    assert usable_cpus(mask, CpuState()) == mask


def test_a_host_tier_larger_than_the_limit_is_refused_with_both_numbers() -> None:
    settings = config(kv=KvTiers(host_bytes=4 * GIB, disk_bytes=1, disk_path="/kv"))
    words = refusal(settings, 2 * GIB)
    assert f"4.1 GiB ({4 * GIB + settings.kv.prefetch_bytes} bytes)" in words
    assert f"2.0 GiB ({2 * GIB} bytes)" in words
    assert "spillThreshold" in words
    assert refusal(settings, 5 * GIB) == ""
    assert refusal(settings, None) == ""
    assert refusal(config(), 1) == ""


def test_a_replica_that_fits_has_no_warnings() -> None:
    memory = MemoryState(limit_bytes=4 * GIB)
    settings = config(threads=8, kv=KvTiers(host_bytes=GIB))
    assert warnings(settings, a_machine(), CpuState(), memory, 2 * GIB) == ()


def test_what_the_replica_may_grow_to_is_compared_with_the_limit() -> None:
    settings = config(kv=KvTiers(host_bytes=3 * GIB))
    memory = MemoryState(limit_bytes=4 * GIB)
    (words,) = warnings(settings, a_machine(), CpuState(), memory, 2 * GIB)
    assert f"5.0 GiB ({5 * GIB} bytes)" in words
    assert f"4.0 GiB ({4 * GIB} bytes)" in words
    assert warnings(settings, a_machine(), CpuState(), memory, 0) == ()
    # Without a limit the node's memory is one.
    found = warnings(settings, a_machine(memory_bytes=GIB), CpuState(), MemoryState(), GIB)
    assert "its memory limit is 1.0 GiB" in found[0]


def test_threads_numa_nodes_and_huge_pages_are_noticed() -> None:
    numa = (NumaNode(0, frozenset({0}), GIB), NumaNode(1, frozenset({1}), GIB))
    machine = a_machine(numa=numa, huge_pages=512)
    cpu = CpuState(quota=2.5)
    threads, nodes, pages = warnings(config(threads=4), machine, cpu, MemoryState(), 0)
    assert "threads of the plan is 4, but the container has 8 CPUs and a quota of 2.5: 2" in threads
    assert "NUMA nodes 0, 1" in nodes
    assert "single-numa-node" in nodes
    assert "1.0 GiB" in pages
