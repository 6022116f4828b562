"""Writes children: the only writer of anything but status and events.

Owns: carrying out steps, the check that an object is ours before the first write, feeding answers
back into the cache. Does not own: what is written (``diff.py``, ``rollout.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.controller.diff import Removal, Write
from terrace.controller.gated import dropped, gated
from terrace.controller.kinds import (
    BUDGET,
    CONFIGMAP,
    SERVICE,
    Kind,
    Manifest,
    controller_of,
    is_controlled_by,
    is_deleting,
    is_of_predecessor,
    key_of,
    uid_of,
)
from terrace.controller.port import (
    Cluster,
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)

if TYPE_CHECKING:
    from terrace.controller.cache import Cache


MADE_ANEW = (SERVICE, CONFIGMAP, BUDGET)
"""Kinds that lose nothing when they are deleted and made again."""


class ForeignObjectError(Exception):
    """An object of that name belongs to somebody else; it is left alone."""

    def __init__(self, kind: Kind, live: Manifest) -> None:
        key, owner = key_of(live), controller_of(live)
        whose = f"{owner['kind']} {owner['name']}" if owner else "nobody"
        super().__init__(
            f"{kind} {key} exists and is controlled by {whose}: delete or rename it, "
            "or give this object another name"
        )


class PredecessorError(Exception):
    """An object of that name is left of a deleted owner of the same name; it goes by itself."""

    def __init__(self, kind: Kind, live: Manifest) -> None:
        owner = controller_of(live) or {}
        whose = f"the deleted {owner.get('kind')} {owner.get('name')}"
        super().__init__(
            f"{kind} {key_of(live)} of {whose} is still there; Kubernetes removes it once nothing "
            "uses it"
        )


async def carry_out(
    cluster: Cluster, cache: Cache, owner_uid: str, steps: list[Write | Removal]
) -> None:
    """Do all steps in order. Safe to repeat after a failure at any of them.

    Raises ``ForeignObjectError``, ``PredecessorError`` and what ``Cluster`` raises.
    """
    for step in steps:
        if isinstance(step, Write):
            await _write(cluster, cache, owner_uid, step)
        else:
            await remove(cluster, cache, step.kind, step.manifest, orphan=step.is_orphaning)


async def remove(
    cluster: Cluster, cache: Cache, kind: Kind, live: Manifest, *, orphan: bool = False
) -> None:
    """Delete exactly the object that was seen; one that is gone, or another by now, is fine.

    ``orphan``: what it owns stays and loses its owner.
    """
    try:
        await cluster.delete(kind, key_of(live), uid_of(live), orphan=orphan)
    except (NotFoundError, ConflictError):
        return
    except UnavailableError:
        # The deletion may have happened, and one replica too few at a time is enough.
        cache.expect_deletion(kind, key_of(live), uid_of(live))
        raise
    cache.expect_deletion(kind, key_of(live), uid_of(live))


async def _write(cluster: Cluster, cache: Cache, owner_uid: str, step: Write) -> None:
    manifest, uid = step.manifest, step.uid
    if not uid:
        uid = await _uid_of_existing(cluster, owner_uid, step.kind, manifest)
    if uid:
        # As a precondition: an object that was deleted and made anew meanwhile is not touched.
        manifest = {**manifest, "metadata": {**manifest["metadata"], "uid": uid}}
    await _refuse_what_is_dropped(cluster, step.kind, manifest)
    try:
        cache.put(step.kind, await cluster.apply(step.kind, manifest))
    except InvalidError:
        if not uid or step.kind not in MADE_ANEW:
            raise
        # Somebody's edit stands beside our fields and makes the whole invalid.
        await cluster.delete(step.kind, key_of(manifest), uid)
        raise ConflictError(f"{step.kind} {key_of(manifest)} is made anew") from None


async def _refuse_what_is_dropped(cluster: Cluster, kind: Kind, manifest: Manifest) -> None:
    if gated(manifest):
        problem = dropped(manifest, await cluster.preview(kind, manifest))
        if problem:
            raise InvalidError(f"{kind} {key_of(manifest)}: {problem}")


async def _uid_of_existing(cluster: Cluster, owner_uid: str, kind: Kind, manifest: Manifest) -> str:
    # The cache holds labelled objects only, so a foreign one of the same name may hide from it.
    try:
        live = await cluster.get(kind, key_of(manifest))
    except NotFoundError:
        return ""
    if not is_controlled_by(live, owner_uid):
        if is_of_predecessor(live, manifest):
            raise PredecessorError(kind, live)
        raise ForeignObjectError(kind, live)
    if is_deleting(live):
        raise ConflictError(f"{kind} {key_of(live)} is still being deleted")
    return uid_of(live)
