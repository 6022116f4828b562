"""Garbage collection of a pool's model cache: notes what is unused, and has it deleted by a Job.

Owns: the steps for one pool. Does not own: what counts as used (``unused.py``), deleting
(``terrace_runtime.models.prune``). Level-triggered: the notes are in the pool's status, and they
say what a Job did before it is removed, so a kill between any two calls at most repeats one. A file
that a model begins to use meanwhile stays, because its fetch asks for it; if the Job was first, the
fetch gets it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.api import names
from terrace.controller.apply import carry_out, remove
from terrace.controller.diff import diff
from terrace.controller.jobs import prune_job
from terrace.controller.kinds import CONFIGMAP, JOB, POD, POOL, Manifest, key_of, uid_of
from terrace.controller.model_volumes import cache_claim
from terrace.controller.unused import (
    after_pruning,
    due,
    ending,
    files_now,
    mounted_digests,
    next_due_s,
    noted,
    used_files,
)

if TYPE_CHECKING:
    from terrace.api.pool import PoolSpec
    from terrace.api.status import CachedFile
    from terrace.controller.cache import Cache
    from terrace.controller.context import Context


@dataclass(frozen=True, slots=True)
class Collection:
    """Where collecting stands: what status says, and what is to be done after it is written."""

    files: list[CachedFile]
    to_prune: list[CachedFile]
    ended_job: Manifest | None = None
    look_in_s: float | None = None


def judge(context: Context, pool: Manifest, spec: PoolSpec) -> Collection:
    """Look at the cache and at the Job. Without the policy, nothing is noted."""
    after_s, now = spec.model_cache.delete_unused_after_seconds, context.now()
    job = _job(context.cache, pool)
    if after_s is None:
        return Collection([], [], ended_job=job)
    before = noted((pool.get("status") or {}).get("files"))
    end = ending(job, _pods(context.cache, job)) if job else None
    if end is not None:
        before = after_pruning(before, end, now)
    files = files_now(before, *_used(context.cache, pool), now)
    if job is None:
        return Collection(
            files, due(files, after_s, now), look_in_s=next_due_s(files, after_s, now)
        )
    if end is None:
        return Collection(files, [])
    left_s = end.left_s(now, context.config.fetch_retry_s)
    return Collection(files, [], ended_job=None if left_s else job, look_in_s=left_s or None)


async def prune(context: Context, pool: Manifest, spec: PoolSpec, found: Collection) -> None:
    """Make the Job for what is due. Raises what ``carry_out`` raises."""
    if found.to_prune:
        digests = tuple(file.digest for file in found.to_prune)
        job = prune_job(pool, spec, digests, context.config.runtime_image)
        steps = diff([(JOB, job)], {})
        await carry_out(context.cluster, context.cache, uid_of(pool), steps)


async def clear(context: Context, found: Collection) -> None:
    """Remove the Job that has ended, once the notes say what it did."""
    if found.ended_job is not None:
        await remove(context.cluster, context.cache, JOB, found.ended_job)


def _job(cache: Cache, pool: Manifest) -> Manifest | None:
    wanted = names.prune_job_name(key_of(pool).name)
    owned = cache.owned_by(uid_of(pool))
    return next((c for kind, c in owned if kind == JOB and key_of(c).name == wanted), None)


def _pods(cache: Cache, job: Manifest) -> list[Manifest]:
    return [pod for kind, pod in cache.owned_by(uid_of(job)) if kind == POD]


def _used(cache: Cache, pool: Manifest) -> tuple[dict[str, int], set[str]]:
    """Files that models of this cache name, with sizes, and digests that replicas are told."""
    used: dict[str, int] = {}
    mounted: set[str] = set()
    key = key_of(pool)
    for sharer in cache.of_kind(POOL):
        if key_of(sharer).namespace != key.namespace or cache_claim(sharer) != cache_claim(pool):
            continue
        for model in cache.models_in_pool(key_of(sharer)):
            for digest, file_bytes in used_files(model).items():
                used[digest] = max(file_bytes, used.get(digest, 0))
            for kind, child in cache.owned_by(uid_of(model)):
                if kind == CONFIGMAP:
                    mounted |= mounted_digests(child)
    return used, mounted
