"""One child process for work on what strangers sent: it takes turns, and can be killed.

Owns: the child's life, and how long one may wait for a turn. Does not own: what is said to it, or
for how long (``chat_template.py``, ``image_decoder.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

from terrace_runtime.api.errors import unavailable

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Coroutine

Result = TypeVar("Result")
_MAX_LINE: Final = 64 * 2**20


class KillableChild:
    """At most one process of ``module`` at a time; a new one is started where there is none."""

    def __init__(self, module: str, wait_s: float, busy: str) -> None:
        """``wait_s``: bound of waiting for others' turns; ``busy`` is what a client hears then."""
        self._module = module
        self._wait_s = wait_s
        self._busy = busy
        self._process: Process | None = None
        self._lock = asyncio.Lock()

    @property
    def process(self) -> Process | None:
        """The child while it lives."""
        found = self._process
        return found if found is not None and found.returncode is None else None

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Have the child to oneself; raises ApiError 503 when others take too long."""
        try:
            async with asyncio.timeout(self._wait_s):
                await self._lock.acquire()
        except TimeoutError:
            raise unavailable(self._busy, "busy") from None
        try:
            yield
        finally:
            self._lock.release()

    async def start(self) -> Process:
        """A new child, in the place of one that died."""
        await self.kill()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_MAX_LINE,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
        return self._process

    async def kill(self) -> None:
        """Stop; safe to call twice."""
        child, self._process = self._process, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
            # The transport is closed by asyncio only when its pipes are.
            child._transport.close()  # type: ignore[attr-defined] # noqa: SLF001 - no public way


async def undisturbed(work: Coroutine[Any, Any, Result]) -> Result:
    """Do ``work`` to its end even when the client leaves: what it said must not be cut in half."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)
