"""Ascend devices from recorded tables of ``npu-smi info``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from terrace_runtime.device_telemetry.ascend import AscendReader, parse
from terrace_runtime.device_telemetry.sample import DeviceSample, ReadError

if TYPE_CHECKING:
    from pathlib import Path

# ruff: noqa: E501 - the tool's own width
ATLAS_910B = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.rc1                 Version: 24.1.rc1                                             |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 101.8       43                0    / 0             |
| 0                         | 0000:C1:00.0  | 37          0    / 0          59356/ 65536         |
+===========================+===============+====================================================+
| 1     910B3               | OK            | 92.0        39                0    / 0             |
| 0                         | 0000:C2:00.0  | 0           0    / 0          3314 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 1712733       | python                   | 56042                   |
+===========================+===============+====================================================+
"""
ATLAS_A3 = """\
+------------------------------------------------------------------------------------------------------------------+
| npu-smi 26.0.rc2                            Version: 26.0.rc2                                                    |
+---------------------------+---------------+----------------------------------------------------------------------+
| NPU   Name                | Health        | Power(W)             Temp(C)                 Hugepages-Usage(page)   |
| Chip  Phy-ID              | Bus-Id        | AICore(%)            Memory-Usage(MB)        HBM-Usage(MB)           |
+===========================+===============+======================================================================+
| 0     Ascend910           | OK            | 162.6                34                      0    / 0                |
| 0     0                   | 0000:9D:00.0  | 0                    0    / 0                3419 / 65536            |
+------------------------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -                    34                      0    / 0                |
| 1     1                   | 0000:9F:00.0  | 0                    0    / 0                2874 / 65536            |
+===========================+===============+======================================================================+
"""
ATLAS_310P = """\
+---------------------------+-----------------+------------------------------------------------------+
| NPU   Name                | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip                      | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===========================+=================+======================================================+
| 2     310P3               | OK              | NA           52                0     / 0             |
| 0                         | 0000:01:00.0    | 5            1236 / 21534                            |
+===========================+=================+======================================================+
"""


def test_each_chip_has_use_memory_heat_and_power() -> None:
    assert list(parse(ATLAS_910B)) == [
        DeviceSample(
            id="0000:c1:00.0",
            name="Ascend 910B3",
            vendor="huawei",
            utilization=0.37,
            memory_used_bytes=59356 << 20,
            memory_total_bytes=65536 << 20,
            temperature_celsius=43.0,
            power_watts=101.8,
        ),
        DeviceSample(
            id="0000:c2:00.0",
            name="Ascend 910B3",
            vendor="huawei",
            utilization=0.0,
            memory_used_bytes=3314 << 20,
            memory_total_bytes=65536 << 20,
            temperature_celsius=39.0,
            power_watts=92.0,
        ),
    ]


def test_the_second_chip_of_a_card_has_no_power_of_its_own() -> None:
    first, second = parse(ATLAS_A3)
    assert (first.name, first.power_watts) == ("Ascend910", 162.6)
    assert (second.id, second.power_watts, second.temperature_celsius) == (
        "0000:9f:00.0",
        None,
        34.0,
    )


def test_a_chip_with_ordinary_memory() -> None:
    (chip,) = parse(ATLAS_310P)
    assert (chip.memory_used_bytes, chip.memory_total_bytes) == (1236 << 20, 21534 << 20)
    assert (chip.power_watts, chip.utilization) == (None, 0.05)


@pytest.mark.parametrize("text", ["", "| | | |", "|0 910B|OK|", "\x00" * 100, "|" * 1000])
def test_other_words_are_no_chips(text: str) -> None:
    assert list(parse(text)) == []


def tool(folder: Path, script: str) -> AscendReader:
    """A reader of a stand-in for the tool."""
    path, manager = folder / "npu-smi", folder / "davinci_manager"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    manager.touch()
    reader = AscendReader.open(manager, [folder / "none", path])
    assert reader is not None
    return reader


def test_the_tool_is_run_at_each_look(tmp_path: Path) -> None:
    (tmp_path / "table").write_text(ATLAS_910B)
    reader = tool(tmp_path, f'[ "$1" = info ] && cat {tmp_path}/table')
    assert len(reader.read()) == 2


def test_a_tool_that_fails_is_an_error_with_its_words(tmp_path: Path) -> None:
    reader = tool(tmp_path, "echo dcmi model initialized failed; exit 255")
    with pytest.raises(ReadError, match=r"exit code 255: dcmi model initialized failed"):
        reader.read()


def test_without_a_driver_or_its_tool_there_is_no_reader(tmp_path: Path) -> None:
    assert AscendReader.open(tmp_path / "none", [tmp_path / "npu-smi"]) is None
    (tmp_path / "davinci_manager").touch()
    assert AscendReader.open(tmp_path / "davinci_manager", [tmp_path / "npu-smi"]) is None
