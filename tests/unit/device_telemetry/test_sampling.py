"""When devices are looked at, and what a scrape shows."""

from __future__ import annotations

import threading

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from support.runtime_http import until
from terrace_runtime.device_telemetry.metrics import DeviceMetrics
from terrace_runtime.device_telemetry.sample import DeviceSample, ReadError
from terrace_runtime.device_telemetry.sampler import FRESH_S, DeviceSampler


class Script:
    """A reader that answers, fails or hangs as told."""

    def __init__(self) -> None:
        self.looks = 0
        self.error = ""
        self.go_on = threading.Event()
        self.go_on.set()

    def read(self) -> tuple[DeviceSample, ...]:
        self.looks += 1
        assert self.go_on.wait(60)
        if self.error:
            raise ReadError(self.error)
        return (DeviceSample("GPU-1", "H100", "nvidia", 0.5, throttled_by=("power-cap",)),)


@pytest.fixture
def now() -> list[float]:
    return [100.0]


def sampler(script: Script, now: list[float], patience_s: float = 60.0) -> DeviceSampler:
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
    await until(lambda: script.looks > 0)
    assert (script.looks, devices.failures, devices.samples) == (1, 1, ())
    script.go_on.set()
    await until(lambda: bool(devices.samples))
    await devices.refresh()
    assert devices.failures == 1
