"""How many threads this process may really use.

Owns: the count from affinity, cpuset and quota. Does not own: reading them (``node``) or what is
done with it. Next: ``llama.py`` sets llama.cpp's threads to it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from terrace_runtime.node import fitting
from terrace_runtime.node.cgroups import ROOT, cpu_state

if TYPE_CHECKING:
    from pathlib import Path


def usable_threads(wanted: int = 0, root: Path = ROOT) -> int:
    """``wanted`` threads, or as many as there can be, but never more than these.

    Hyperthreads count as CPUs: llama.cpp's kernels were not measured to lose by them here, and a
    container with whole cores is the kubelet's to give.
    """
    cpu = cpu_state(root)
    cpus = fitting.usable_cpus(frozenset(os.sched_getaffinity(0)), cpu)
    usable = fitting.usable_threads(len(cpus), cpu.quota)
    return min(wanted, usable) if wanted else usable
