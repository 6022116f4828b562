"""When devices are looked at: for a scrape, at most every two seconds, and never for ever.

Owns: freshness, the thread that asks the drivers, what happens when one hangs. Does not own:
reading (``nvml.py``, ``sysfs.py``, ``ascend.py``), names (``metrics.py``). A driver call can hang
for minutes when a device falls off its bus: the scrape then goes on without, and the look that
hangs is the only one.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from typing import TYPE_CHECKING, Final

import structlog

from terrace_runtime.device_telemetry.ascend import AscendReader
from terrace_runtime.device_telemetry.sample import DeviceSample, ReadError
from terrace_runtime.device_telemetry.sysfs import SysfsReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from terrace_runtime.device_telemetry.sample import DeviceReader

FRESH_S: Final = 2.0
PATIENCE_S: Final = 1.0
"""How long a scrape waits for drivers."""

log = structlog.get_logger()


def open_readers() -> list[DeviceReader]:
    """Readers of what this machine has; raises ReadError where a driver is there and fails."""
    found: list[DeviceReader | None] = [_nvml(), SysfsReader(), AscendReader.open()]
    return [reader for reader in found if reader is not None]


def _nvml() -> DeviceReader | None:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    # Only now: pynvml takes some megabytes, which replicas without such a device need not have.
    from terrace_runtime.device_telemetry.nvml import NvmlReader  # noqa: PLC0415 - as said

    return NvmlReader.open()


class DeviceSampler:
    """The last look at all devices."""

    def __init__(
        self,
        open_readers: Callable[[], Sequence[DeviceReader]] = open_readers,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """``clock`` is in seconds. Nothing is opened before the first look."""
        self._open_readers = open_readers
        self._readers: Sequence[DeviceReader] | None = None
        self._clock = clock
        self._patience_s = patience_s
        self._looked_at = float("-inf")
        self._look: asyncio.Task[None] | None = None
        self.samples: tuple[DeviceSample, ...] = ()
        self.failures = 0
        """Looks that failed or took too long."""

    async def refresh(self) -> None:
        """Look again unless the last look is fresh; returns within ``patience_s``, never raises."""
        if self._look is None and self._clock() - self._looked_at < FRESH_S:
            return
        is_new = self._look is None
        if self._look is None:
            self._look = asyncio.create_task(self._run())
        done, _ = await asyncio.wait({self._look}, timeout=self._patience_s)
        if done:
            self._look = None
        elif is_new:
            self.failures += 1
            self.samples = ()
            log.warning("devices do not answer", patience_s=self._patience_s)

    async def _run(self) -> None:
        try:
            self.samples = await asyncio.to_thread(self._read)
        except ReadError as error:
            self.failures += 1
            self.samples = ()
            log.warning("devices cannot be read", error=str(error))
        self._looked_at = self._clock()

    def _read(self) -> tuple[DeviceSample, ...]:
        if self._readers is None:
            self._readers = self._open_readers()
        return tuple(sample for reader in self._readers for sample in reader.read())
