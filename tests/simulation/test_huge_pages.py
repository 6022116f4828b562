"""What the engine's child asks of the kernel, seen in the memory of a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.engine_builders import DEMO, runtime_config
from terrace_runtime.engine.process import ChildEngine

MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
KV_BYTES = 1280 * 4 * 4096
"""20 MiB of cells, which llama.cpp clears when it opens a context."""

pytestmark = pytest.mark.skipif(
    not MODE.exists() or "[madvise]" not in MODE.read_text(),
    reason=f"{MODE}: asking for huge pages makes no difference here",
)


async def test_cells_lie_in_huge_pages() -> None:
    assert await huge_bytes_of_a_child() >= KV_BYTES // 2


async def test_whoever_turns_huge_pages_off_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert await huge_bytes_of_a_child() == 0


async def huge_bytes_of_a_child() -> int:
    engine = ChildEngine(
        runtime_config(model_path=str(DEMO / "chat.gguf"), context_tokens=4096, parallel=4)
    )
    await engine.start()
    try:
        assert engine.pid is not None
        return huge_bytes(engine.pid)
    finally:
        await engine.close()


def huge_bytes(pid: int) -> int:
    """Anonymous memory of a process that lies in huge pages now."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages:"))
