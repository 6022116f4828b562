"""What the node is made of: CPUs and their cores, NUMA nodes, huge pages, shared memory.

Owns: reading it. Does not own: limits (``cgroups.py``) or what follows (``fitting.py``). Files:
the kernel's "cputopology", "numaperf", "hugetlbpage" and "transhuge" guides, proc(5).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from terrace_runtime.node.cgroups import ROOT
from terrace_runtime.node.files import number_list, table, text

if TYPE_CHECKING:
    from pathlib import Path

_KIB: Final = 1024
_MAX_NUMA_NODES: Final = 64


@dataclass(frozen=True, slots=True)
class NumaNode:
    """One of the machine's NUMA nodes."""

    number: int
    cpus: frozenset[int]
    """Those that this process may use."""
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes and counts; 0 where the kernel does not tell."""

    cpus: frozenset[int]
    """Those in this process's affinity mask."""
    cores: int
    """Physical cores that they belong to."""
    memory_bytes: int
    huge_page_bytes: int
    huge_pages: int
    free_huge_pages: int
    transparent_huge_pages: str
    """``always``, ``madvise`` or ``never``; empty where there is no such thing."""
    numa: tuple[NumaNode, ...]
    shared_memory_bytes: int | None
    """Size of /dev/shm."""


def machine(root: Path = ROOT, affinity: frozenset[int] | None = None) -> Machine:
    """Look once; ``affinity``: CPUs of this process where it is not asked for them."""
    cpus = frozenset(os.sched_getaffinity(0)) if affinity is None else affinity
    memory = table(root / "proc/meminfo")
    return Machine(
        cpus=cpus,
        cores=_cores(root, cpus),
        memory_bytes=memory.get("MemTotal", 0) * _KIB,
        huge_page_bytes=memory.get("Hugepagesize", 0) * _KIB,
        huge_pages=memory.get("HugePages_Total", 0),
        free_huge_pages=memory.get("HugePages_Free", 0),
        transparent_huge_pages=_chosen(text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        numa=_numa(root, cpus),
        shared_memory_bytes=_size(root / "dev/shm"),
    )


def _cores(root: Path, cpus: frozenset[int]) -> int:
    folder = root / "sys/devices/system/cpu"
    siblings = {
        text(folder / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in cpus
    }
    return len(siblings)


def _numa(root: Path, cpus: frozenset[int]) -> tuple[NumaNode, ...]:
    found = []
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        digits = folder.name.removeprefix("node")
        if not digits.isdecimal():
            continue
        total = re.search(r"MemTotal:\s+(\d+) kB", text(folder / "meminfo"))
        here = number_list(text(folder / "cpulist")) & cpus
        found.append(NumaNode(int(digits), here, int(total[1]) * _KIB if total else 0))
    return tuple(sorted(found, key=lambda node: node.number)[:_MAX_NUMA_NODES])


def _chosen(words: str) -> str:
    """``always [madvise] never``: the word in brackets."""
    found = re.search(r"\[(\w{1,16})\]", words)
    return found[1] if found else ""


def _size(folder: Path) -> int | None:
    try:
        facts = os.statvfs(folder)
    except OSError:
        return None
    return facts.f_blocks * facts.f_frsize
