"""The node section of the report: looked at when asked for, at most once a second.

Owns: freshness, and the translation into the contract. Does not own: reading (``cgroups.py``,
``machine.py``) or judging (``fitting.py``). What the machine is made of is read once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from terrace_runtime.contract import (
    ContainerMemory,
    CpuReport,
    NodeReport,
    NumaReport,
    PressureReport,
)
from terrace_runtime.node import cgroups, fitting
from terrace_runtime.node.files import shown_list
from terrace_runtime.node.machine import machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from terrace_runtime.contract import RuntimeConfig
    from terrace_runtime.node.machine import NumaNode

FRESH_S: Final = 1.0
_MAX_LIST: Final = 128


class NodeWatch:
    """One per process."""

    def __init__(
        self,
        config: RuntimeConfig,
        root: Path = cgroups.ROOT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``root``: where /proc, /sys and /dev are; ``clock`` in seconds."""
        self._config = config
        self._root = root
        self._clock = clock
        self._machine = machine(root)
        self._looked_at = float("-inf")
        self._report = NodeReport()
        self._held_bytes = 0

    def loaded(self, held_bytes: int, tier_bytes: int) -> None:
        """The model is loaded and we hold so much anonymous memory: judge anew.

        ``tier_bytes`` of it are the tiers': the plan says how much that will be.
        """
        self._held_bytes = max(0, held_bytes - tier_bytes)
        self._looked_at = float("-inf")

    @property
    def report(self) -> NodeReport:
        """As it is now, or was less than FRESH_S ago."""
        now = self._clock()
        if now - self._looked_at >= FRESH_S:
            self._report, self._looked_at = self._look(), now
        return self._report

    @property
    def refusal(self) -> str:
        """Why the plan cannot fit; empty: it may."""
        limit = cgroups.memory_state(self._root).limit_bytes
        bound = fitting.smallest(limit, self._machine.memory_bytes or None)
        return fitting.refusal(self._config, bound)

    def _look(self) -> NodeReport:
        cpu, memory = cgroups.cpu_state(self._root), cgroups.memory_state(self._root)
        group, found = cgroups.find("memory", self._root), self._machine
        return NodeReport(
            cgroups="none" if group is None else "v2" if group.is_v2 else "v1",
            cpu=CpuReport(
                usable=len(fitting.usable_cpus(found.cpus, cpu)),
                cores=found.cores,
                quota=cpu.quota,
                periods=cpu.periods,
                throttled_periods=cpu.throttled_periods,
                throttled_seconds=cpu.throttled_seconds,
            ),
            memory=_memory(memory),
            pressure=tuple(self._pressure()),
            node_memory_bytes=found.memory_bytes,
            shared_memory_bytes=found.shared_memory_bytes,
            huge_page_bytes=found.huge_page_bytes,
            huge_pages=found.huge_pages,
            free_huge_pages=found.free_huge_pages,
            transparent_huge_pages=found.transparent_huge_pages,
            numa=tuple(_numa(node) for node in found.numa if node.cpus),
            warnings=fitting.warnings(self._config, found, cpu, memory, self._held_bytes),
        )

    def _pressure(self) -> list[PressureReport]:
        kinds: tuple[Any, ...] = ("cpu", "memory", "io")
        states = ((kind, cgroups.pressure(kind, self._root)) for kind in kinds)
        return [
            PressureReport(
                resource=kind,
                some=state.some,
                full=state.full,
                some_seconds=state.some_seconds,
                full_seconds=state.full_seconds,
            )
            for kind, state in states
            if state is not None
        ]


def _memory(state: cgroups.MemoryState) -> ContainerMemory:
    used = state.used_bytes
    return ContainerMemory(
        limit_bytes=state.limit_bytes,
        high_bytes=state.high_bytes,
        used_bytes=used,
        working_set_bytes=None if used is None else max(0, used - (state.reclaimable_bytes or 0)),
        peak_bytes=state.peak_bytes,
        oom_kills=state.kills,
        limit_hits=state.times_full,
    )


def _numa(node: NumaNode) -> NumaReport:
    cpus = shown_list(node.cpus)[:_MAX_LIST]
    return NumaReport(node=node.number, cpus=cpus, memory_bytes=node.memory_bytes)
