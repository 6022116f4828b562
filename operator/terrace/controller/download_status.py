"""The running download, as ``status.download`` and ``kubectl get`` show it.

Owns: its numbers, its one line of words, since when it stands still. Does not own: reading progress
(``progress.py``), conditions. Pure.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from terrace.api.file_status import DownloadStatus
from terrace.planner.nodes import format_bytes

if TYPE_CHECKING:
    from datetime import datetime

    from terrace.controller.findings import Findings
    from terrace.controller.kinds import Manifest
    from terrace.controller.progress import Progress
    from terrace_runtime.contract import FetchProgress

MINUTE_S, HOUR_S = 60, 3600


def download_status(found: Findings, before: Manifest, now: datetime) -> DownloadStatus | None:
    """None where nothing is fetched now."""
    if found.progress is None or found.download is None:
        return None
    file, _ = found.download
    line, stalled = found.progress.line, found.progress.is_stalled
    return DownloadStatus(
        file=file,
        stage=line.stage,
        done_bytes=line.done_bytes,
        total_bytes=line.total_bytes,
        bytes_per_second=0 if stalled else line.bytes_per_second,
        seconds_left=None if stalled else line.seconds_left,
        stalled_since=_stalled_since(found.progress, before.get("download") or {}, now),
        summary=summary(line, stalled=stalled),
    )


def summary(line: FetchProgress, *, stalled: bool) -> str:
    """How far, how fast and how long, in a line: ``43%, 12.0 MiB/s, 3m20s left``."""
    if line.total_bytes:
        done = f"{100 * line.done_bytes // line.total_bytes}%"
    else:
        done = format_bytes(line.done_bytes)
    words = [done if line.stage == "download" else f"{line.stage} {done}"]
    if stalled:
        return ", ".join([*words, "stalled"])
    if line.bytes_per_second:
        words.append(f"{format_bytes(line.bytes_per_second)}/s")
    if line.seconds_left is not None:
        words.append(f"{_duration(line.seconds_left)} left")
    return ", ".join(words)


def _duration(seconds: int) -> str:
    if seconds >= HOUR_S:
        return f"{seconds // HOUR_S}h{seconds % HOUR_S // MINUTE_S}m"
    if seconds >= MINUTE_S:
        return f"{seconds // MINUTE_S}m{seconds % MINUTE_S}s"
    return f"{seconds}s"


def _stalled_since(progress: Progress, before: Manifest, now: datetime) -> str | None:
    if not progress.is_stalled:
        return None
    is_same = before.get("doneBytes") == progress.line.done_bytes
    if is_same and before.get("stalledSince"):
        return str(before["stalledSince"])  # Another operator may have seen it stop.
    return (now - timedelta(seconds=progress.still_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
