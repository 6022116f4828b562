"""NVIDIA devices through NVML: the runtime's only import of pynvml.

Owns: which calls are made and what their units are. Does not own: when (``sampler.py``). A value
that a device, a driver or a MIG slice does not tell is None; only a driver that stops answering
altogether is an error. Calls and units: NVML API reference, "Device Queries".
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pynvml

from terrace_runtime.device_telemetry.sample import DeviceSample, ReadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    T = TypeVar("T")

_MILLI: Final = 1000
_PERCENT: Final = 100
_REASONS: Final = {
    pynvml.nvmlClocksEventReasonSwPowerCap: "power-cap",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware-slowdown",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "software-thermal",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "hardware-thermal",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power-brake",
}
"""Idle clocks and clocks that an administrator set are no throttling."""
_GONE: Final = frozenset(
    {
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_UNKNOWN,
    }
)


class NvmlReader:
    """The devices that the container was given; a MIG slice counts as one of its own."""

    @classmethod
    def open(cls) -> NvmlReader | None:
        """``None`` where no NVIDIA driver is; raises ReadError where one is and fails."""
        try:
            pynvml.nvmlInit()
        except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
            return None
        except pynvml.NVMLError as error:
            raise ReadError(f"nvmlInit: {error}") from error
        return cls()

    def read(self) -> tuple[DeviceSample, ...]:
        """Raises ReadError when the driver is gone."""
        try:
            count = pynvml.nvmlDeviceGetCount()
            return tuple(
                _sample(part, whole)
                for index in range(count)
                for whole in [pynvml.nvmlDeviceGetHandleByIndex(index)]
                for part in _parts(whole)
            )
        except pynvml.NVMLError as error:
            raise ReadError(f"NVML: {error}") from error


def _parts(device: Any) -> Iterator[Any]:
    """The MIG slices of ``device`` that can be seen, or the device itself."""
    mode = _told(lambda: pynvml.nvmlDeviceGetMigMode(device))
    if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        yield device
        return
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(device)):
        # Slots without a slice, and slices of other containers.
        with contextlib.suppress(pynvml.NVMLError_NotFound, pynvml.NVMLError_NoPermission):
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, index)


def _sample(part: Any, whole: Any) -> DeviceSample:
    """Memory is the slice's; heat and power are only known of the whole device."""
    memory = _told(lambda: pynvml.nvmlDeviceGetMemoryInfo(part))
    use = _told(lambda: pynvml.nvmlDeviceGetUtilizationRates(part))
    heat = _told(lambda: pynvml.nvmlDeviceGetTemperature(whole, pynvml.NVML_TEMPERATURE_GPU))
    power = _told(lambda: pynvml.nvmlDeviceGetPowerUsage(whole))
    limit = _told(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(whole))
    reasons = _told(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(whole))
    return DeviceSample(
        id=_text(pynvml.nvmlDeviceGetUUID(part)),
        name=_text(_told(lambda: pynvml.nvmlDeviceGetName(part)) or ""),
        vendor="nvidia",
        utilization=None if use is None else use.gpu / _PERCENT,
        memory_used_bytes=None if memory is None else memory.used,
        memory_total_bytes=None if memory is None else memory.total,
        temperature_celsius=None if heat is None else float(heat),
        power_watts=None if power is None else power / _MILLI,
        power_limit_watts=None if limit is None else limit / _MILLI,
        throttled_by=None
        if reasons is None
        else tuple(name for bit, name in _REASONS.items() if reasons & bit),
    )


def _told(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except pynvml.NVMLError as error:
        if error.value in _GONE:
            raise
        return None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
