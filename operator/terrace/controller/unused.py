"""Which files of a model cache nobody uses any more, and which of them are to go.

Owns: the notes in the pool's status, when a file's time is up, what a prune Job's end means.
Does not own: the Job (``manifests.py``), the order of steps (``collect.py``). Pure.

A file is used while a model of any pool with this cache names it by its digest, or a ConfigMap of
such a model does: replicas that go on with an older file keep it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pydantic import ValidationError

from terrace.api.status import CachedFile
from terrace.controller import pods
from terrace.controller.facts import finished_at, parse_time
from terrace_runtime.contract import (
    FETCH_CONTAINER,
    MAX_PRUNED,
    MODEL_CACHE_DIR,
    RUNTIME_CONFIG_FILE,
    PruneOutcome,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from terrace.controller.kinds import Manifest

MAX_FILES = 256
"""Files that a pool's status lists. More are not collected until some of these are gone."""
_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a prune Job ended."""

    outcome: PruneOutcome | None
    """None: it left no word, so nothing is known to be gone."""
    started_at: datetime
    ended_at: datetime

    def left_s(self, now: datetime, retry_s: float) -> float:
        """Seconds until its successor may start: none, unless there was something left to do."""
        is_done = self.outcome and not self.outcome.kept and not self.outcome.failure
        since_s = (now - self.ended_at).total_seconds()
        return 0.0 if is_done else max(0.0, retry_s - since_s)


def collects(pool: Manifest) -> bool:
    """Whether unused files of that pool are to go; it need not parse."""
    model_cache = (pool.get("spec") or {}).get("modelCache") or {}
    return model_cache.get("deleteUnusedAfterSeconds") is not None


def used_files(model: Manifest) -> dict[str, int]:
    """Digest and size of the cached files that status names; digests of the spec without size."""
    spec, status = model.get("spec") or {}, model.get("status") or {}
    sources = [spec.get("source"), spec.get("projector"), spec.get("draft")]
    sources += [entry.get("source") for entry in spec.get("adapters") or ()]
    wanted = {str(source["sha256"]): 0 for source in sources if source and source.get("sha256")}
    files = [status.get(field) for field in ("model", "projector", "draft")]
    files += status.get("adapters") or ()
    known = {
        str(file.get("digest")): int(file.get("fileBytes", 0))
        for file in files
        if file and str(file.get("path", "")).startswith(f"{MODEL_CACHE_DIR}/")
    }
    return wanted | known


def mounted_digests(config: Manifest) -> set[str]:
    """Whatever looks like a digest in what replicas are told, paths included."""
    return {*_DIGEST.findall(str((config.get("data") or {}).get(RUNTIME_CONFIG_FILE, "")))}


def noted(stored: object) -> list[CachedFile]:
    """The notes as status holds them; of a version we cannot read: none."""
    try:
        return [CachedFile.model_validate(entry) for entry in (stored or ())]  # type: ignore[attr-defined] # what is no list does not validate
    except (ValidationError, TypeError):
        return []


def files_now(
    before: Iterable[CachedFile], used: Mapping[str, int], mounted: set[str], now: datetime
) -> list[CachedFile]:
    """The notes brought up to date: unused ones first, the longest unused ahead."""
    known = {file.digest: file for file in before}
    for digest, file_bytes in used.items():
        if file_bytes:
            known[digest] = CachedFile(digest=digest, file_bytes=file_bytes)
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    files = [
        file.model_copy(
            update={
                "unused_since": None
                if digest in used or digest in mounted
                else file.unused_since or stamp
            }
        )
        for digest, file in known.items()
    ]
    return sorted(files, key=_by_age)[:MAX_FILES]


def due(files: Iterable[CachedFile], after_s: int, now: datetime) -> list[CachedFile]:
    """Files whose time is up, as many as one Job takes."""
    ripe = now - timedelta(seconds=after_s)
    unused = (file for file in files if file.unused_since)
    return [file for file in unused if parse_time(file.unused_since or "") <= ripe][:MAX_PRUNED]


def next_due_s(files: Iterable[CachedFile], after_s: int, now: datetime) -> float | None:
    """Seconds until the next file's time is up; None where none is unused."""
    times = [parse_time(file.unused_since) for file in files if file.unused_since]
    return max(0.0, (min(times) - now).total_seconds() + after_s) if times else None


def ending(job: Manifest, job_pods: list[Manifest]) -> Ending | None:
    """None while the Job runs."""
    ended_at = finished_at(job)
    if ended_at is None:
        return None
    started_at = parse_time(str(job["metadata"].get("creationTimestamp", "")))
    for pod in job_pods:
        ended = pods.terminated(pod, FETCH_CONTAINER)
        try:
            outcome = PruneOutcome.model_validate_json(str((ended or {}).get("message") or ""))
        except ValidationError:
            continue
        return Ending(outcome, started_at, ended_at)
    return Ending(None, started_at, ended_at)


def after_pruning(files: Iterable[CachedFile], end: Ending, now: datetime) -> list[CachedFile]:
    """The notes once a Job has ended. What it could not delete now gets its time anew."""
    if end.outcome is None:
        return [*files]
    freed, kept = {*end.outcome.freed}, {*end.outcome.kept}
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    left = []
    for file in files:
        # A file noted after the Job began was there again, whatever the Job says.
        was_meant = file.unused_since and parse_time(file.unused_since) <= end.started_at
        if was_meant and file.digest in freed:
            continue
        is_kept = was_meant and file.digest in kept
        left.append(file.model_copy(update={"unused_since": stamp}) if is_kept else file)
    return left


def _by_age(file: CachedFile) -> tuple[bool, str, str]:
    return file.unused_since is None, file.unused_since or "", file.digest
