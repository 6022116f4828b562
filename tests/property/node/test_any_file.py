"""Whatever the kernel or a vendor's tool writes, reading it never fails and bounds hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from support.node_trees import BOX, V2_MOUNT, tree
from terrace_runtime.device_telemetry.ascend import parse
from terrace_runtime.node.cgroups import cpu_state, memory_state, pressure
from terrace_runtime.node.files import number_list, shown_list
from terrace_runtime.node.fitting import usable_threads

ROWS = st.text(st.sampled_from("0123456789 -,.:/|=maxsomefullavg10total_\n"), max_size=60)
ANY = ROWS | st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
FILES = (
    "cpu.max",
    "cpu.stat",
    "cpuset.cpus.effective",
    "memory.max",
    "memory.events",
    "cpu.pressure",
)


@settings(max_examples=50, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(FILES, ANY)), ANY, st.none() | ANY)
def test_odd_files_limit_nothing_wrongly(
    files: dict[str, str], membership: str, mounts: str | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = tree(
            Path(folder),
            membership=f"{membership}\n0::/{BOX}",
            mounts=V2_MOUNT if mounts is None else f"{mounts}\n{V2_MOUNT}",
            groups={BOX: files},
        )
        cpu, memory = cpu_state(root), memory_state(root)
        state = pressure("cpu", root)
    assert cpu.quota is None or cpu.quota > 0
    assert usable_threads(4, cpu.quota) in range(1, 5)
    assert memory.limit_bytes is None or 0 <= memory.limit_bytes < 1 << 62
    assert state is None or state.some >= 0


@given(st.frozensets(st.integers(0, 8191)))
def test_a_list_of_cpus_reads_back(cpus: frozenset[int]) -> None:
    assert number_list(shown_list(cpus)) == cpus


@given(ANY)
def test_any_list_is_bounded(words: str) -> None:
    assert all(0 <= cpu < 8192 for cpu in number_list(words))


@given(st.lists(ANY, max_size=8).map("|".join) | ANY)
def test_any_table_of_a_tool_is_read(text: str) -> None:
    for sample in parse(text):
        assert sample.memory_used_bytes is None or sample.memory_used_bytes >= 0
