"""Cards in ``/sys``, when they are looked at, and what a scrape shows."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from support.runtime_http import until
from terrace_runtime.device_telemetry.metrics import DeviceMetrics
from terrace_runtime.device_telemetry.sample import DeviceSample, ReadError
from terrace_runtime.device_telemetry.sampler import FRESH_S, DeviceSampler
from terrace_runtime.device_telemetry.sysfs import SysfsReader

if TYPE_CHECKING:
    from pathlib import Path

MI300X = {
    "vendor": "0x1002",
    "class": "0x120000",
    "device": "0x74a1",
}
RADEON = {
    "vendor": "0x1002",
    "class": "0x030000",
    "device": "0x744c",
    "unique_id": "e7fc0a9a5f5e1d5c",
    "product_name": "AMD Radeon PRO W7900",
    "gpu_busy_percent": "42",
    "mem_info_vram_total": "48301604864",
    "mem_info_vram_used": "1234567168",
    "hwmon/hwmon3/temp1_input": "55000",
    "hwmon/hwmon3/power1_average": "89000000",
    "hwmon/hwmon3/power1_cap": "241000000",
}
ARC = {
    "vendor": "0x8086",
    "class": "0x030000",
    "device": "0x56a0",
    "hwmon/hwmon2/temp1_input": "47000",
    "hwmon/hwmon2/power1_max": "190000000",
}
MATROX = {"vendor": "0x102b", "class": "0x030000", "device": "0x0538"}


def card(root: Path, name: str, files: dict[str, str], *, is_ours: bool = True) -> None:
    for path, text in {**files, f"drm/{name}/dev": "226:0"}.items():
        file = root / "drm" / name / "device" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    (root / "dri").mkdir(exist_ok=True)
    if is_ours:
        (root / "dri" / name).touch()


def cards(root: Path) -> tuple[DeviceSample, ...]:
    return SysfsReader(root / "drm", root / "dri").read()


def test_a_radeon_and_an_arc_are_read_in_their_units(tmp_path: Path) -> None:
    card(tmp_path, "card0", RADEON)
    card(tmp_path, "card1", ARC)
    card(tmp_path, "card0-HDMI-A-1", RADEON)
    radeon, arc = cards(tmp_path)
    assert radeon == DeviceSample(
        id="e7fc0a9a5f5e1d5c",
        name="AMD Radeon PRO W7900",
        vendor="amd",
        utilization=0.42,
        memory_used_bytes=1_234_567_168,
        memory_total_bytes=48_301_604_864,
        temperature_celsius=55.0,
        power_watts=89.0,
        power_limit_watts=241.0,
    )
    assert (arc.vendor, arc.name, arc.temperature_celsius) == ("intel", "intel 0x56a0", 47.0)
    assert arc.utilization is None
    assert arc.memory_total_bytes is None


def test_a_card_that_the_pod_was_not_given_is_not_its_device(tmp_path: Path) -> None:
    card(tmp_path, "card0", ARC, is_ours=False)
    assert cards(tmp_path) == ()


def test_an_accelerator_without_a_screen_is_a_device_too(tmp_path: Path) -> None:
    card(tmp_path, "card2", MI300X)
    assert [sample.name for sample in cards(tmp_path)] == ["amd 0x74a1"]


def test_the_screen_of_a_server_is_no_device_and_odd_files_are_no_numbers(tmp_path: Path) -> None:
    card(tmp_path, "card0", MATROX)
    card(tmp_path, "card1", RADEON | {"gpu_busy_percent": "-1", "mem_info_vram_used": "\x00"})
    (radeon,) = cards(tmp_path)
    assert radeon.utilization is None
    assert radeon.memory_used_bytes is None


class Script:
    """A reader that answers, fails or hangs as told."""

    def __init__(self) -> None:
        self.looks = 0
        self.error = ""
        self.go_on = threading.Event()
        self.go_on.set()

    def read(self) -> tuple[DeviceSample, ...]:
        self.looks += 1
        self.go_on.wait(30)
        if self.error:
            raise ReadError(self.error)
        return (DeviceSample("GPU-1", "H100", "nvidia", 0.5, throttled_by=("power-cap",)),)


@pytest.fixture
def now() -> list[float]:
    return [100.0]


def sampler(script: Script, now: list[float], patience_s: float = 10.0) -> DeviceSampler:
    return DeviceSampler(lambda: [script], lambda: now[0], patience_s)


def shown(sampler: DeviceSampler) -> str:
    registry = CollectorRegistry()
    registry.register(DeviceMetrics(sampler))
    return generate_latest(registry).decode()


async def test_two_scrapes_within_two_seconds_look_once(now: list[float]) -> None:
    script = Script()
    devices = sampler(script, now)
    await devices.refresh()
    now[0] += FRESH_S / 2
    await devices.refresh()
    assert script.looks == 1
    now[0] += FRESH_S
    await devices.refresh()
    assert script.looks == 2


async def test_a_scrape_shows_what_is_told_and_nothing_else(now: list[float]) -> None:
    devices = sampler(Script(), now)
    await devices.refresh()
    text = shown(devices)
    labels = 'device="GPU-1",name="H100"'
    assert f'terrace_runtime_device_utilization_ratio{{{labels},vendor="nvidia"}} 0.5' in text
    assert f'throttled{{{labels},reason="power-cap",vendor="nvidia"}} 1.0' in text
    assert "device_power_watts" not in text


async def test_a_driver_that_fails_is_counted_and_its_old_values_are_gone(
    now: list[float],
) -> None:
    script = Script()
    devices = sampler(script, now)
    await devices.refresh()
    script.error, now[0] = "GPU is lost", now[0] + FRESH_S
    await devices.refresh()
    assert "terrace_runtime_devices 0.0" in shown(devices)
    assert "terrace_runtime_device_read_failures_total 1.0" in shown(devices)
    script.error, now[0] = "", now[0] + FRESH_S
    await devices.refresh()
    assert "terrace_runtime_devices 1.0" in shown(devices)


async def test_a_driver_that_hangs_holds_no_scrape_up_and_is_asked_by_one_thread_only(
    now: list[float],
) -> None:
    script = Script()
    script.go_on.clear()
    devices = sampler(script, now, patience_s=0.01)
    for _ in range(3):
        now[0] += FRESH_S
        await devices.refresh()
    assert (script.looks, devices.failures, devices.samples) == (1, 1, ())
    script.go_on.set()
    await until(lambda: bool(devices.samples))
    await devices.refresh()
    assert devices.failures == 1
