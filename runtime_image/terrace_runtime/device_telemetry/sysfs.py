"""AMD and Intel devices through the kernel: what amdgpu, xe and i915 write into ``/sys``.

Owns: the files and their units, and which cards are this pod's: ``/sys`` shows all of the node's,
``/dev/dri`` those that it was given. Does not own: when (``sampler.py``). No vendor's library is
needed; what a driver does not write is None. Files and units: the kernel's "amdgpu driver" guide
(GPU power, thermal and clock controls) and the hwmon sysfs interface.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from terrace_runtime.device_telemetry.sample import DeviceSample

if TYPE_CHECKING:
    from collections.abc import Iterator

DRM: Final = Path("/sys/class/drm")
DRI: Final = Path("/dev/dri")
_VENDORS: Final = {"0x1002": "amd", "0x8086": "intel"}
_CLASSES: Final = ("0x03", "0x12")
"""Display controllers and processing accelerators (PCI base classes)."""
_MAX_FILE_BYTES: Final = 256
_MAX_CARDS: Final = 64
_PERCENT, _MILLI, _MICRO = 100, 1_000, 1_000_000


class SysfsReader:
    """The cards in ``drm`` that have a file in ``dri``."""

    def __init__(self, drm: Path = DRM, dri: Path = DRI) -> None:
        self._drm, self._dri = drm, dri

    def read(self) -> tuple[DeviceSample, ...]:
        """All cards of vendors that are known here; a card that vanishes is left out."""
        return tuple(_sample(device, vendor) for device, vendor in _cards(self._drm, self._dri))


def _cards(drm: Path, dri: Path) -> Iterator[tuple[Path, str]]:
    # Connectors are called card0-HDMI-A-1.
    cards = sorted(path for path in drm.glob("card*") if "-" not in path.name)
    for card in cards[:_MAX_CARDS]:
        device = card / "device"
        vendor = _VENDORS.get(_word(device / "vendor"))
        is_ours = any((dri / node.name).exists() for node in (device / "drm").glob("*"))
        if vendor and is_ours and _word(device / "class").startswith(_CLASSES):
            yield device, vendor


def _sample(device: Path, vendor: str) -> DeviceSample:
    monitor = next(iter(sorted((device / "hwmon").glob("hwmon*"))), device / "hwmon")
    busy = _number(device / "gpu_busy_percent")
    heat = _number(monitor / "temp1_input")
    # Cards have one of the two: a mean, or the last value.
    power = _number(monitor / "power1_average") or _number(monitor / "power1_input")
    limit = _number(monitor / "power1_cap") or _number(monitor / "power1_max")
    return DeviceSample(
        id=_word(device / "unique_id") or device.resolve().name,
        name=_word(device / "product_name") or f"{vendor} {_word(device / 'device')}",
        vendor=vendor,
        utilization=None if busy is None else busy / _PERCENT,
        memory_used_bytes=_number(device / "mem_info_vram_used"),
        memory_total_bytes=_number(device / "mem_info_vram_total"),
        temperature_celsius=None if heat is None else heat / _MILLI,
        power_watts=None if power is None else power / _MICRO,
        power_limit_watts=None if limit is None else limit / _MICRO,
    )


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
