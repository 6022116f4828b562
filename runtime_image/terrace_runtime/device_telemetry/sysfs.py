"""AMD's and Intel's devices through the kernel: what their drivers write into ``/sys``.

The drivers are amdgpu, xe, i915 and intel_vpu. Owns: the files and their units, and which cards are
this pod's: ``/sys`` shows all of the node's, ``/dev`` those that it was given. Does not own: when
(``sampler.py``), why clocks are low (``throttling.py``). No vendor's library is needed; what a
driver does not write is None. Files and units: the kernel's "amdgpu driver" guide (GPU power,
thermal and clock controls), the hwmon sysfs interface, and the notes in ``xe_hwmon.c``,
``i915_hwmon.c``, ``xe_tile_sysfs.c`` and ``ivpu_sysfs.c``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from terrace_runtime.device_telemetry.rates import Rates
from terrace_runtime.device_telemetry.sample import DeviceSample
from terrace_runtime.device_telemetry.throttling import amd_reasons, intel_reasons

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SYS: Final = Path("/sys/class")
DEV: Final = Path("/dev")
_VENDORS: Final = {"0x1002": "amd", "0x8086": "intel"}
_CLASSES: Final = ("0x03", "0x12")
"""Display controllers and processing accelerators (PCI base classes)."""
_MAX_FILE_BYTES: Final = 256
_MAX_CARDS: Final = 64
_PERCENT, _MILLI, _MICRO = 100, 1_000, 1_000_000


class SysfsReader:
    """Cards of class ``drm`` with a file in ``/dev/dri``, NPUs of class ``accel`` in /dev/accel."""

    def __init__(
        self,
        classes: Path = SYS,
        dev: Path = DEV,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``classes``: where the kernel's device classes are; ``clock`` in seconds, for rates."""
        self._classes, self._dev = classes, dev
        self._rates = Rates(clock)

    def read(self) -> tuple[DeviceSample, ...]:
        """All cards of vendors that are known here; a card that vanishes is left out."""
        cards = [self._card(device, vendor) for device, vendor in self._cards()]
        return (*cards, *(self._npu(device) for device in self._npus()))

    def _cards(self) -> Iterator[tuple[Path, str]]:
        # Connectors are called card0-HDMI-A-1.
        drm = self._classes / "drm"
        cards = sorted(path for path in drm.glob("card*") if "-" not in path.name)
        for card in cards[:_MAX_CARDS]:
            device = card / "device"
            vendor = _VENDORS.get(_word(device / "vendor"))
            nodes = (device / "drm").glob("*")
            is_ours = any((self._dev / "dri" / node.name).exists() for node in nodes)
            if vendor and is_ours and _word(device / "class").startswith(_CLASSES):
                yield device, vendor

    def _npus(self) -> Iterator[Path]:
        for accel in sorted((self._classes / "accel").glob("accel*"))[:_MAX_CARDS]:
            device = accel / "device"
            is_ours = (self._dev / "accel" / accel.name).exists()
            if is_ours and (device / "npu_busy_time_us").exists():
                yield device

    def _card(self, device: Path, vendor: str) -> DeviceSample:
        monitor = next(iter(sorted((device / "hwmon").glob("hwmon*"))), device / "hwmon")
        busy = _number(device / "gpu_busy_percent")
        # amdgpu: edge of the chip; xe numbers its package 2.
        heat = _first(monitor / "temp1_input", monitor / "temp2_input")
        limit = _first(monitor / "power1_cap", monitor / "power1_max", monitor / "power2_max")
        return DeviceSample(
            id=_word(device / "unique_id") or device.resolve().name,
            name=_word(device / "product_name") or f"{vendor} {_word(device / 'device')}",
            vendor=vendor,
            utilization=None if busy is None else busy / _PERCENT,
            memory_used_bytes=_number(device / "mem_info_vram_used"),
            memory_total_bytes=_number(device / "mem_info_vram_total") or _tiles(device),
            temperature_celsius=None if heat is None else heat / _MILLI,
            power_watts=self._power(monitor),
            power_limit_watts=None if limit is None else limit / _MICRO,
            throttled_by=amd_reasons(device) if vendor == "amd" else intel_reasons(device),
        )

    def _power(self, monitor: Path) -> float | None:
        """Cards have one of the three: a mean, the last value, or a counter of energy."""
        power = _first(monitor / "power1_average", monitor / "power1_input")
        if power is not None:
            return power / _MICRO
        counter = monitor / "energy1_input"
        rate = self._rates.per_second(counter, _number(counter))
        return None if rate is None else rate / _MICRO

    def _npu(self, device: Path) -> DeviceSample:
        counter = device / "npu_busy_time_us"
        rate = self._rates.per_second(counter, _number(counter))
        return DeviceSample(
            id=device.resolve().name,
            name=f"intel NPU {_word(device / 'device')}",
            vendor="intel",
            utilization=None if rate is None else min(1.0, rate / _MICRO),
            memory_used_bytes=_number(device / "npu_memory_utilization"),
        )


def _tiles(device: Path) -> int | None:
    """Sum of what xe tells of each tile."""
    sizes = [_number(file) or 0 for file in device.glob("tile*/physical_vram_size_bytes")]
    return sum(sizes) or None


def _first(*files: Path) -> int | None:
    return next((value for value in map(_number, files) if value is not None), None)


def _number(path: Path) -> int | None:
    text = _word(path)
    return int(text) if text.isdecimal() else None


def _word(path: Path) -> str:
    """A file's text; empty where it cannot be read (a sleeping card answers with an error)."""
    try:
        with path.open(errors="replace") as file:
            return file.read(_MAX_FILE_BYTES).strip()
    except OSError:
        return ""
