"""The report channel: ``GET /v1/runtime`` of a replica when it becomes ready, and slowly after.

Owns: which pod is asked when, the HTTP call and its bounds. Does not own: what a report changes
(``status.py``). A replica that does not answer is asked again later; nothing waits for it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import aiohttp
import structlog
from pydantic import ValidationError

from terrace.api import names
from terrace.api.names import Key
from terrace.controller.kinds import Manifest, key_of, labels_of, uid_of
from terrace_runtime.contract import RUNTIME_PORT, RuntimeReport

log = structlog.get_logger()

REPORT_PATH = "/v1/runtime"
TIMEOUT_S = 3.0
MAX_BYTES = 64 * 1024
MAX_WAITING = 1000
MAX_REMEMBERED = 10_000
READERS = 4

Read = Callable[[str], Awaitable[RuntimeReport | None]]
"""Pod address -> its report, None when it gives none."""


class Reports:
    """The last report of each replica, and who is to be asked."""

    def __init__(self, clock: Callable[[], float], interval_s: float) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._last: OrderedDict[str, tuple[float, RuntimeReport | None]] = OrderedDict()
        self._wanted: asyncio.Queue[tuple[str, str, Key]] = asyncio.Queue(MAX_WAITING)

    def of(self, ready: list[Manifest]) -> RuntimeReport | None:
        """The newest report of any of these pods; asks those that are due."""
        newest: tuple[float, RuntimeReport | None] = (float("-inf"), None)
        for pod in ready:
            at, report = self._last.get(uid_of(pod), (float("-inf"), None))
            if self._clock() - at >= self._interval_s:
                self._ask(pod, report)
            if report is not None and at > newest[0]:
                newest = (at, report)
        return newest[1]

    async def run(self, read: Read, learned: Callable[[Key], None]) -> None:
        """Ask for ever; ``learned`` is called with the model whose report came."""
        async with asyncio.TaskGroup() as group:
            for _ in range(READERS):
                group.create_task(self._reader(read, learned))

    async def _reader(self, read: Read, learned: Callable[[Key], None]) -> None:
        while True:
            uid, address, model = await self._wanted.get()
            report = await read(address)
            if report is not None:
                self._last[uid] = (self._clock(), report)
                learned(model)

    def _ask(self, pod: Manifest, known: RuntimeReport | None) -> None:
        address = pod["status"].get("podIP")
        model = Key(key_of(pod).namespace, labels_of(pod).get(names.LABEL_MODEL, ""))
        if not address or self._wanted.full():
            return
        # Counts as read from now on, so that a pod that does not answer is not asked in a loop.
        self._last[uid_of(pod)] = (self._clock(), known)
        self._last.move_to_end(uid_of(pod))
        while len(self._last) > MAX_REMEMBERED:
            self._last.popitem(last=False)
        self._wanted.put_nowait((uid_of(pod), address, model))


async def read_report(session: aiohttp.ClientSession, address: str) -> RuntimeReport | None:
    """Ask one replica, for at most three seconds and 64 KiB."""
    host = f"[{address}]" if ":" in address else address
    url = f"http://{host}:{RUNTIME_PORT}{REPORT_PATH}"
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with session.get(url, timeout=timeout, allow_redirects=False) as response:
            body = await response.content.read(MAX_BYTES)
            response.raise_for_status()
            return RuntimeReport.model_validate_json(body)
    except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as error:
        log.info("no report", address=address, error=str(error) or type(error).__name__)
        return None
