"""Ascend devices through ``npu-smi info``, the only interface that containers are sure to get.

Owns: finding and running the tool, and its table. Does not own: when (``sampler.py``). The table
has two rows for each chip; a dash or NA is what the chip does not tell. Huawei's Ascend docker
runtime mounts the tool and shows the container's own devices alone.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from terrace_runtime.device_telemetry.sample import DeviceSample, ReadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MANAGER: Final = Path("/dev/davinci_manager")
TOOLS: Final = (Path("/usr/local/bin/npu-smi"), Path("/usr/local/sbin/npu-smi"))
_TIMEOUT_S: Final = 10.0
_MAX_CHARS: Final = 256 * 1024
_CELLS: Final = 3
_MIB: Final = 1 << 20
_PERCENT: Final = 100
_CHIP: Final = re.compile(r"\d+\s+([A-Za-z0-9][\w-]{1,31})")
_BUS: Final = re.compile(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]")
_PAIR: Final = re.compile(r"(\d+)\s*/\s*(\d+)")


class AscendReader:
    """Runs the tool at each look."""

    def __init__(self, tool: Path) -> None:
        self._tool = tool

    @classmethod
    def open(cls, manager: Path = MANAGER, tools: Sequence[Path] = TOOLS) -> AscendReader | None:
        """``None`` where no Ascend driver is, or its tool is not in the container."""
        tool = next((tool for tool in tools if os.access(tool, os.X_OK)), None)
        return cls(tool) if tool is not None and manager.exists() else None

    def read(self) -> tuple[DeviceSample, ...]:
        """Raises ReadError when the tool fails or hangs."""
        try:
            # The vendor's tool at its own place; nothing of anybody's input is in the command.
            done = subprocess.run(  # noqa: S603 - the tool that was found, no shell
                [self._tool, "info"], capture_output=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ReadError(f"npu-smi: {error}") from error
        text = done.stdout.decode(errors="replace")[:_MAX_CHARS]
        if done.returncode:
            last = text.strip().rpartition("\n")[2][:200]
            raise ReadError(f"npu-smi info ended with exit code {done.returncode}: {last}")
        return tuple(parse(text))


def parse(text: str) -> Iterator[DeviceSample]:
    """Chips of the table that ``npu-smi info`` prints."""
    first: list[str] = []
    for row in text.splitlines():
        cells = [cell.strip() for cell in row.strip().strip("|").split("|")]
        if len(cells) != _CELLS:
            continue
        if _BUS.fullmatch(cells[1]) and first:
            yield _sample(first, cells)
            first = []
        else:
            first = cells if _CHIP.fullmatch(cells[0]) else []


def _sample(first: list[str], second: list[str]) -> DeviceSample:
    chip = _CHIP.fullmatch(first[0])
    name = chip[1] if chip else ""
    power, heat = (_number(word) for word in (*first[2].split(), "", "")[:2])
    busy = _number((*second[2].split(), "")[0])
    # Chips without memory of their own on the package have one pair, the others 0 / 0 before it.
    pairs = [(int(used), int(total)) for used, total in _PAIR.findall(second[2])]
    used, total = next((pair for pair in reversed(pairs) if pair[1]), (None, None))
    return DeviceSample(
        id=second[1].lower(),
        name=name if name.startswith("Ascend") else f"Ascend {name}",
        vendor="huawei",
        utilization=None if busy is None else busy / _PERCENT,
        memory_used_bytes=None if used is None else used * _MIB,
        memory_total_bytes=None if total is None else total * _MIB,
        temperature_celsius=heat,
        power_watts=power,
    )


def _number(word: str) -> float | None:
    try:
        return float(word) if word[:1].isdigit() else None
    except ValueError:
        return None
