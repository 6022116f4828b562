"""NVML's answers through the real pynvml, over a driver library made for the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "support/nvml_library.c"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libnvidia-ml.so.1."""
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-o", library, SOURCE], check=True)
    return folder


def look(driver: Path | None, machine: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TERRACE_NVML": machine, "LD_LIBRARY_PATH": str(driver or "")}
    return subprocess.run(
        [sys.executable, "-m", "terrace_runtime.device_telemetry"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def devices(driver: Path, machine: str) -> list[dict[str, Any]]:
    found = look(driver, machine)
    assert found.returncode == 0, found.stderr
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    return [line for line in lines if line["vendor"] == "nvidia"]


def test_a_whole_device_tells_use_memory_heat_power_and_why_it_is_slow(driver: Path) -> None:
    assert devices(driver, "h100") == [
        {
            "id": "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6",
            "name": "NVIDIA H100 80GB HBM3",
            "vendor": "nvidia",
            "utilization": 0.97,
            "memory_used_bytes": 62_277_025_792,
            "memory_total_bytes": 85_520_809_984,
            "temperature_celsius": 71.0,
            "power_watts": 688.412,
            "power_limit_watts": 700.0,
            "throttled_by": ["power-cap", "hardware-thermal"],
        }
    ]


def test_slices_are_devices_with_memory_of_their_own_and_no_use_that_nobody_tells(
    driver: Path,
) -> None:
    first, second = devices(driver, "mig")
    assert first["id"] != second["id"]
    assert {first["memory_total_bytes"], second["memory_total_bytes"]} == {5_100_273_664}
    assert first["utilization"] is None
    assert first["temperature_celsius"] == 71.0


def test_what_an_old_driver_does_not_tell_is_none_and_not_zero(driver: Path) -> None:
    (old,) = devices(driver, "old")
    assert old["memory_used_bytes"] == 62_277_025_792
    for field in ("utilization", "temperature_celsius", "power_watts", "throttled_by"):
        assert old[field] is None


def test_a_device_that_fell_off_its_bus_is_an_error_that_says_so(driver: Path) -> None:
    found = look(driver, "lost")
    assert found.returncode == 1
    assert "GPU is lost" in found.stderr


def test_without_a_driver_it_says_that_there_is_no_device() -> None:
    found = look(None)
    assert (found.returncode, found.stderr.strip()) == (0, "no device")
