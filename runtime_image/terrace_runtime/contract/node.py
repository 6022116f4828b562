"""What a replica tells of its container and its node: limits, use, pressure, what was noticed.

Owns: the ``node`` section of RuntimeReport. Does not own: reading it (``terrace_runtime.node``).
``None``: the kernel does not tell, or nobody limits.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from terrace_runtime.contract.values import Value


class CpuReport(Value):
    """CPUs of the container."""

    usable: int = 0
    """CPUs in the affinity mask and the cpuset."""
    cores: int = 0
    """Physical cores that they belong to."""
    quota: float | None = None
    """CPUs that all threads together may keep busy: the smallest quota of all groups above."""
    periods: int | None = None
    """Enforcement periods of the quota so far."""
    throttled_periods: int | None = None
    """Of them: those in which the container had to stop."""
    throttled_seconds: float | None = None


class ContainerMemory(Value):
    """Memory of the container's control group, in bytes."""

    limit_bytes: int | None = None
    """The smallest limit of all groups above that can be seen."""
    high_bytes: int | None = None
    """Above it the kernel slows the container down (version 2)."""
    used_bytes: int | None = None
    """With the page cache."""
    working_set_bytes: int | None = None
    """Without pages of files that were not used lately: what kubelet evicts by."""
    peak_bytes: int | None = None
    oom_kills: int | None = None
    limit_hits: int | None = None
    """How often the kernel had to take pages back at the limit."""


class PressureReport(Value):
    """Waiting for one resource (PSI, control groups version 2)."""

    resource: Literal["cpu", "memory", "io"]
    some: float
    """Share of the last ten seconds in which some task waited, 0 to 1."""
    full: float
    """The same for all tasks at once."""
    some_seconds: float
    """Since the container began."""
    full_seconds: float


class NumaReport(Value):
    """One NUMA node on which the container has CPUs."""

    node: int
    cpus: str = Field(max_length=128)
    """Those of the container, such as ``0-7,16``; cut where they are many."""
    memory_bytes: int


class NodeReport(Value):
    """``node`` of GET /v1/runtime."""

    cgroups: Literal["v1", "v2", "none"] = "none"
    """Version of the control groups that limit the memory."""
    cpu: CpuReport = CpuReport()
    memory: ContainerMemory = ContainerMemory()
    pressure: tuple[PressureReport, ...] = Field(default=(), max_length=3)
    node_memory_bytes: int = 0
    shared_memory_bytes: int | None = None
    """Size of /dev/shm, which the runtime does not use."""
    huge_page_bytes: int = 0
    huge_pages: int = 0
    """Reserved on the node; llama.cpp takes none of them."""
    free_huge_pages: int = 0
    transparent_huge_pages: str = Field(default="", max_length=16)
    """``always``, ``madvise`` or ``never``."""
    numa: tuple[NumaReport, ...] = Field(default=(), max_length=64)
    warnings: tuple[str, ...] = Field(default=(), max_length=16)
    """What of all this does not fit the plan, with the way out."""
