"""Carrying out what a probe or a hook says: an HTTP request, a connection, a command, a pause.

Owns: the I/O of one action and a sentence about its failure. Does not own: when to act
(``probes.py``) and what follows (``container.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from terrace.local.pods.processes import Process, kill_members, spawn

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from pathlib import Path

    from terrace.local.pods.spec import Action, Json

_MAX_OUTPUT_BYTES = 10 * 1024
_MAX_BODY_BYTES = 1024
_OK = range(200, 400)


class ActionError(Exception):
    """The action did not succeed; the message says why."""


@dataclass(frozen=True)
class Target:
    """The running container that actions are aimed at."""

    pod_ip: str
    ports: Mapping[str, int]
    env: Mapping[str, str]
    folder: Path
    root: Path


async def act(action: Action, target: Target, timeout_s: float) -> None:
    """Does it once, within ``timeout_s``; raises ActionError."""
    try:
        async with asyncio.timeout(timeout_s):
            if action.http is not None:
                await _get(action.http, target)
            elif action.tcp is not None:
                await _connect(action.tcp, target)
            elif action.sleep_s is not None:
                await asyncio.sleep(action.sleep_s)
            else:
                await _execute(action.command, target)
    except TimeoutError as error:
        raise ActionError(f"no answer within {timeout_s:g} s") from error


def _port(entry: Json, target: Target) -> int:
    wanted = entry.get("port", 0)
    if isinstance(wanted, int):
        return wanted
    if wanted in target.ports:
        return target.ports[wanted]
    if str(wanted).isdigit():
        return int(wanted)
    raise ActionError(f"the container has no port named {wanted!r}")


async def _get(entry: Json, target: Target) -> None:
    scheme = str(entry.get("scheme") or "HTTP").lower()
    path = entry.get("path") or "/"
    address = f"{entry.get('host') or target.pod_ip}:{_port(entry, target)}"
    headers = {"User-Agent": "kube-probe/1.36", "Accept": "*/*", "Connection": "close"}
    for header in entry.get("httpHeaders") or ():
        headers[header["name"]] = header["value"]
    # Like kubelet: a probe asks whether the server answers, not who signed its certificate.
    is_verified = scheme != "https"
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(
                f"{scheme}://{address}/{path.lstrip('/')}",
                headers=headers,
                allow_redirects=False,
                ssl=is_verified,
            ) as response,
        ):
            body = await response.content.read(_MAX_BODY_BYTES)
            if response.status not in _OK:
                text = body.decode(errors="replace").strip()
                raise ActionError(f"HTTP probe failed with statuscode: {response.status} {text}")
    except aiohttp.ClientConnectorError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ActionError(f"dial tcp {address}: {why}") from error
    except (aiohttp.ClientError, ValueError, OSError) as error:
        raise ActionError(f"Get {scheme}://{address}{path}: {error}") from error


async def _connect(entry: Json, target: Target) -> None:
    host, port = entry.get("host") or target.pod_ip, _port(entry, target)
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ActionError(f"dial tcp {host}:{port}: {why}") from error
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _execute(command: tuple[str, ...], target: Target) -> None:
    output = bytearray()

    def keep(_: str, chunk: bytes) -> None:
        output.extend(chunk[: _MAX_OUTPUT_BYTES - len(output)])

    try:
        process = spawn(command, target.env, target.folder, keep)
    except OSError as error:
        raise ActionError(f"command {command[0]!r}: {error}") from error
    try:
        code = await asyncio.shield(process.exited)
    finally:
        # A command that runs out of time must not outlive the question.
        await _uninterrupted(_finish(process))
    if code:
        text = output.decode(errors="replace").strip()
        raise ActionError(f"command {command[0]!r} exited with {code}: {text}")


async def _finish(process: Process) -> None:
    await kill_members(process.pid, None)
    await process.exited
    process.drain()
    process.reap()


async def _uninterrupted(work: Coroutine[None, None, None]) -> None:
    """Clears up to the end, though the probe's timeout and the container's end both cancel it."""
    task = asyncio.create_task(work)
    interruption: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            interruption = error
    task.result()
    if interruption is not None:
        raise interruption
