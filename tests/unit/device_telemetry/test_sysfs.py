"""AMD and Intel devices in ``/sys``: files as their drivers write them, in folders of the test."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from terrace_runtime.device_telemetry.sample import DeviceSample
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
ARC_I915 = {
    "vendor": "0x8086",
    "class": "0x030000",
    "device": "0x56a0",
    "hwmon/hwmon2/temp1_input": "47000",
    "hwmon/hwmon2/power1_max": "190000000",
    "hwmon/hwmon2/energy1_input": "5000000",
    "drm/card0/gt/gt0/throttle_reason_status": "1",
    "drm/card0/gt/gt0/throttle_reason_pl1": "1",
    "drm/card0/gt/gt0/throttle_reason_thermal": "0",
    "drm/card0/gt/gt0/throttle_reason_vr_tdc": "1",
}
BATTLEMAGE_XE = {
    "vendor": "0x8086",
    "class": "0x030000",
    "device": "0xe20b",
    "hwmon/hwmon4/temp2_input": "61000",
    "hwmon/hwmon4/temp3_input": "58000",
    "hwmon/hwmon4/power1_max": "190000000",
    "hwmon/hwmon4/energy1_input": "1000000",
    "tile0/physical_vram_size_bytes": "12884901888",
    "tile0/gt0/freq0/throttle/status": "1",
    "tile0/gt0/freq0/throttle/reason_pl1": "0",
    "tile0/gt0/freq0/throttle/reason_thermal": "1",
    "tile0/gt1/freq0/throttle/reason_thermal": "0",
}
MATROX = {"vendor": "0x102b", "class": "0x030000", "device": "0x0538"}
METEOR_LAKE_NPU = {
    "vendor": "0x8086",
    "class": "0x120000",
    "device": "0x7d1d",
    "npu_busy_time_us": "1000000",
    "npu_memory_utilization": "73400320",
}


@dataclass
class Node:
    """A node's ``/sys/class`` and ``/dev``."""

    root: Path
    now: float = 100.0

    def __post_init__(self) -> None:
        self.reader = SysfsReader(self.root / "class", self.root / "dev", lambda: self.now)

    def card(self, name: str, files: dict[str, str], *, is_ours: bool = True) -> None:
        self.device(f"drm/{name}", {**files, f"drm/{name}/dev": "226:0"})
        if is_ours:
            self.give(f"dri/{name}")

    def device(self, name: str, files: dict[str, str]) -> None:
        for path, text in files.items():
            file = self.root / "class" / name / "device" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")

    def give(self, name: str) -> None:
        file = self.root / "dev" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def read(self) -> tuple[DeviceSample, ...]:
        return self.reader.read()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def gpu_metrics(bits: int, revision: tuple[int, int] = (1, 3)) -> bytes:
    """amdgpu's blob: its header, fields that we do not read, and the bits at the end."""
    return struct.pack("<HBB", 120, *revision) + bytes(108) + struct.pack("<Q", bits)


def test_a_radeon_is_read_in_its_units(node: Node) -> None:
    node.card("card0", RADEON)
    node.card("card0-HDMI-A-1", RADEON)
    assert node.read() == (
        DeviceSample(
            id="e7fc0a9a5f5e1d5c",
            name="AMD Radeon PRO W7900",
            vendor="amd",
            utilization=0.42,
            memory_used_bytes=1_234_567_168,
            memory_total_bytes=48_301_604_864,
            temperature_celsius=55.0,
            power_watts=89.0,
            power_limit_watts=241.0,
        ),
    )


@pytest.mark.parametrize(
    ("blob", "reasons"),
    [
        (gpu_metrics(0), ()),
        (gpu_metrics(1 << 0 | 1 << 36), ("power", "thermal")),
        (gpu_metrics(1 << 22 | 1 << 57), ("current", "other")),
        (gpu_metrics((1 << 64) - 1), None),
        (gpu_metrics(1, revision=(1, 4)), None),
        (gpu_metrics(1, revision=(2, 3)), None),
        (gpu_metrics(1)[:100], None),
        (b"", None),
    ],
)
def test_a_radeon_tells_why_its_clocks_are_low(
    node: Node, blob: bytes, reasons: tuple[str, ...] | None
) -> None:
    node.card("card0", RADEON)
    (node.root / "class/drm/card0/device/gpu_metrics").write_bytes(blob)
    assert node.read()[0].throttled_by == reasons


def test_cards_of_i915_tell_power_by_their_energy_and_why_clocks_are_low(node: Node) -> None:
    node.card("card0", ARC_I915)
    (first,) = node.read()
    assert (first.vendor, first.name, first.temperature_celsius) == ("intel", "intel 0x56a0", 47.0)
    assert (first.power_watts, first.power_limit_watts) == (None, 190.0)
    assert first.throttled_by == ("pl1", "vr-tdc")
    assert first.utilization is None
    assert first.memory_total_bytes is None
    node.now += 2.0
    node.card("card0", ARC_I915 | {"hwmon/hwmon2/energy1_input": "245000000"})
    assert node.read()[0].power_watts == 120.0
    # The counter begins anew, as after a reset of the card.
    node.now += 2.0
    node.card("card0", ARC_I915)
    assert node.read()[0].power_watts is None


def test_cards_of_xe_tell_their_memory_and_reasons_by_tile(node: Node) -> None:
    node.card("card1", BATTLEMAGE_XE)
    (card,) = node.read()
    assert card.memory_total_bytes == 12 << 30
    assert card.memory_used_bytes is None
    assert card.temperature_celsius == 61.0
    assert card.throttled_by == ("thermal",)


def test_an_npu_is_busy_by_the_growth_of_its_counter(node: Node) -> None:
    node.device("accel/accel0", METEOR_LAKE_NPU)
    assert node.read() == ()
    node.give("accel/accel0")
    (first,) = node.read()
    assert (first.name, first.vendor) == ("intel NPU 0x7d1d", "intel")
    assert (first.utilization, first.memory_used_bytes) == (None, 70 << 20)
    node.now += 4.0
    node.device("accel/accel0", METEOR_LAKE_NPU | {"npu_busy_time_us": "4000000"})
    assert node.read()[0].utilization == 0.75


def test_a_card_that_the_pod_was_not_given_is_not_its_device(node: Node) -> None:
    node.card("card0", ARC_I915, is_ours=False)
    assert node.read() == ()


def test_an_accelerator_without_a_screen_is_a_device_too(node: Node) -> None:
    node.card("card2", MI300X)
    assert [sample.name for sample in node.read()] == ["amd 0x74a1"]


def test_the_screen_of_a_server_is_no_device_and_odd_files_are_no_numbers(node: Node) -> None:
    node.card("card0", MATROX)
    node.card("card1", RADEON | {"gpu_busy_percent": "-1", "mem_info_vram_used": "\x00"})
    (radeon,) = node.read()
    assert radeon.utilization is None
    assert radeon.memory_used_bytes is None


def test_a_node_without_devices_has_none(node: Node) -> None:
    assert node.read() == ()
