"""Why AMD's and Intel's drivers lower a device's clocks.

Owns: the files and their bits. Does not own: which device (``sysfs.py``). None: the driver does not
tell; empty: nothing lowers them. Layout and bits: the kernel's ``kgd_pp_interface.h`` (struct
gpu_metrics_v1_3) and ``amdgpu_smu.h``; "Xe GT Throttle" in ``xe_gt_throttle.c``; i915's
``throttle_reason_*``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_HEADER: Final = struct.Struct("<HBB")
"""Size of the structure, format revision, content revision."""
_AMD_BITS: Final = struct.Struct("<Q")
_AMD_BITS_AT: Final = 112
"""Where version 1.3 has its bits that do not depend on the chip."""
_AMD_REASONS: Final = (
    ("power", 0, 16),
    ("current", 16, 32),
    ("thermal", 32, 56),
    ("other", 56, 64),
)
_INTEL_FOLDERS: Final = ("tile*/gt*/freq0/throttle", "gt*/freq0/throttle", "drm/card*/gt/gt*")
_INTEL_PREFIXES: Final = ("throttle_reason_", "reason_")
_MAX_REASONS: Final = 32
_MAX_BYTES: Final = 4096


def amd_reasons(device: Path) -> tuple[str, ...] | None:
    """Groups of reasons that apply now."""
    try:
        with (device / "gpu_metrics").open("rb") as file:
            data = file.read(_MAX_BYTES)
    except OSError:
        return None
    if len(data) < _AMD_BITS_AT + _AMD_BITS.size or _HEADER.unpack_from(data)[1:] != (1, 3):
        return None
    (bits,) = _AMD_BITS.unpack_from(data, _AMD_BITS_AT)
    if bits == (1 << 64) - 1:
        return None  # The driver fills in ones where the firmware does not tell.
    return tuple(
        name for name, low, high in _AMD_REASONS if bits >> low & ((1 << (high - low)) - 1)
    )


def intel_reasons(device: Path) -> tuple[str, ...] | None:
    """The kernel's names of the reasons that apply now, such as ``pl1`` and ``thermal``."""
    found: dict[str, bool] = {}
    for folder in _INTEL_FOLDERS:
        for file in sorted(device.glob(f"{folder}/*reason_*")):
            name = _reason(file.name)
            if name and len(found) < _MAX_REASONS:
                found[name] = found.get(name, False) or _is_set(file)
    return tuple(sorted(name for name, is_set in found.items() if is_set)) if found else None


def _reason(name: str) -> str:
    for prefix in _INTEL_PREFIXES:
        if name.startswith(prefix):
            reason = name.removeprefix(prefix).replace("_", "-")
            return "" if reason == "status" else reason
    return ""


def _is_set(file: Path) -> bool:
    try:
        return file.read_bytes()[:8].strip() not in (b"", b"0")
    except OSError:
        return False
