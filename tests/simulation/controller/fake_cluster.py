"""A cluster in memory, behind the controller's port: versions, server-side apply, watches, faults.

It checks what the real one checks as far as the controller depends on it: uids as preconditions,
versions on replace, generations, ownership of applied fields. Every call passes two checkpoints,
one before and one after its effect, at which a fault may strike.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from terrace.api import names
from terrace.controller.kinds import POD, Kind, Manifest, key_of, labels_of, uid_of
from terrace.controller.port import (
    ConflictError,
    InvalidError,
    NotFoundError,
)

if TYPE_CHECKING:
    from terrace.api.names import Key

Checkpoint = Callable[[str, str], None]
"""(call, "before" or "after"): may raise."""
_LIST_KEYS = ("name", "type", "uid", "containerPort", "port")


class FakeCluster:
    """``terrace.controller.port.Cluster`` without a network."""

    def __init__(self, now: Callable[[], str]) -> None:
        self.objects: dict[tuple[Kind, Key], Manifest] = {}
        self.events: list[tuple[Kind, Manifest, bool]] = []
        """Not yet delivered: kind, object, is_deleted."""
        self.writes: list[str] = []
        """Requests to write that were carried out, also those that changed nothing."""
        self.checkpoint: Checkpoint = lambda _call, _moment: None
        self.drains = False
        """Whether pods whose owner is gone are marked and stay until somebody takes them away."""
        self._now = now
        self._applied: dict[tuple[Kind, Key, str], Manifest] = {}
        self._version = 100
        self._uids = 0

    # The port ---------------------------------------------------------------------------------
    async def apply(self, kind: Kind, manifest: Manifest) -> Manifest:
        return self._call("apply", kind, manifest, lambda: self._apply(kind, manifest))

    async def preview(self, kind: Kind, manifest: Manifest) -> Manifest:
        self.checkpoint(f"preview {kind} {key_of(manifest)}", "before")
        return copy.deepcopy(manifest)

    async def apply_status(self, kind: Kind, manifest: Manifest) -> Manifest:
        return self._call("status", kind, manifest, lambda: self._apply_status(kind, manifest))

    async def get(self, kind: Kind, key: Key) -> Manifest:
        self.checkpoint(f"get {kind} {key}", "before")
        return copy.deepcopy(self._stored(kind, key))

    async def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        def effect() -> Manifest:
            if (kind, key_of(manifest)) in self.objects:
                raise ConflictError(f"{kind} {key_of(manifest)} exists")
            return self.put_new(kind, manifest)

        return self._call("create", kind, manifest, effect)

    async def replace(self, kind: Kind, manifest: Manifest) -> Manifest:
        def effect() -> Manifest:
            live = self._stored(kind, key_of(manifest))
            if live["metadata"]["resourceVersion"] != manifest["metadata"]["resourceVersion"]:
                raise ConflictError(f"{kind} {key_of(manifest)} has changed")
            return self.store(kind, manifest)

        return self._call("replace", kind, manifest, effect)

    async def delete(self, kind: Kind, key: Key, uid: str, *, orphan: bool = False) -> None:
        def effect() -> Manifest:
            live = self._stored(kind, key)
            if uid_of(live) != uid:
                raise ConflictError(f"{kind} {key} has another uid")
            if orphan:  # The garbage collector (workloads.py) takes it from here.
                mark = {"deletionTimestamp": self._now(), "finalizers": ["orphan"]}
                self.edit(kind, key, lambda found: found["metadata"].update(mark))
            else:
                self.vanish(kind, key)
            return live

        self._call("delete", kind, {"metadata": key._asdict()}, effect)

    async def list_all(
        self, kind: Kind, namespace: str | None, selector: str, take: Callable[[Manifest], None]
    ) -> str:
        self.checkpoint(f"list {kind}", "before")
        name, _, value = selector.partition("=")
        items = [
            # As from the real one: what is in a list does not name its kind.
            {
                field: copy.deepcopy(value)
                for field, value in manifest.items()
                if field not in ("apiVersion", "kind")
            }
            for (of, key), manifest in self.objects.items()
            if of == kind
            and namespace in (None, key.namespace)
            and (not selector or labels_of(manifest).get(name) == value)
        ]
        version = str(self._version)
        for item in items:
            take(item)
        self.checkpoint(f"list {kind}", "after")
        return version

    async def read_log(self, pod: Key, container: str, max_bytes: int) -> str:
        self.checkpoint(f"log {pod}", "before")
        return ""

    # What the rest of the cluster does ------------------------------------------------------------
    def put_new(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Store an object that did not exist."""
        self._uids += 1
        metadata = {
            **manifest["metadata"],
            "uid": f"uid-{self._uids}",
            "generation": 1,
            "creationTimestamp": self._now(),
        }
        return self.store(kind, {**manifest, "metadata": metadata})

    def store(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Store a new version and tell the watches."""
        self._version += 1
        stored = json.loads(json.dumps(manifest))  # As on a wire: nothing is shared.
        stored["metadata"]["resourceVersion"] = str(self._version)
        self.objects[kind, key_of(stored)] = stored
        self.events.append((kind, copy.deepcopy(stored), False))
        return copy.deepcopy(stored)

    def edit(self, kind: Kind, key: Key, change: Callable[[Manifest], Any]) -> None:
        """A user, or another controller, changes an object."""
        edited = copy.deepcopy(self.objects[kind, key])
        spec = copy.deepcopy(edited.get("spec"))
        change(edited)
        if edited.get("spec") != spec:
            edited["metadata"]["generation"] += 1
        self.store(kind, edited)

    def vanish(self, kind: Kind, key: Key) -> None:
        """An object is gone; what it owned goes with it."""
        gone = self.objects.pop((kind, key))
        for field in [entry for entry in self._applied if entry[:2] == (kind, key)]:
            del self._applied[field]
        self._version += 1
        last = copy.deepcopy(gone)
        last["metadata"]["resourceVersion"] = str(self._version)
        self.events.append((kind, last, True))
        for (owned_kind, owned_key), manifest in list(self.objects.items()):
            owners = manifest["metadata"].get("ownerReferences") or ()
            if not any(owner["uid"] == uid_of(gone) for owner in owners):
                continue
            if self.drains and owned_kind == POD:
                self.edit(POD, owned_key, self._mark)
            else:
                self.vanish(owned_kind, owned_key)

    def _mark(self, live: Manifest) -> None:
        live["metadata"]["deletionTimestamp"] = self._now()

    def of_kind(self, kind: Kind) -> list[Manifest]:
        """All objects of a kind, by key."""
        return [self.objects[entry] for entry in sorted(self.objects) if entry[0] == kind]

    # Effects ----------------------------------------------------------------------------------
    def _call(
        self, verb: str, kind: Kind, manifest: Manifest, effect: Callable[[], Manifest]
    ) -> Manifest:
        call = f"{verb} {kind} {key_of(manifest)}"
        self.checkpoint(call, "before")
        answer = effect()
        self.writes.append(call)
        self.checkpoint(call, "after")
        return answer

    def _stored(self, kind: Kind, key: Key) -> Manifest:
        if (kind, key) not in self.objects:
            raise NotFoundError(f"{kind} {key}")
        return self.objects[kind, key]

    def _apply(self, kind: Kind, manifest: Manifest) -> Manifest:
        key, wanted = key_of(manifest), copy.deepcopy(manifest)
        uid = wanted["metadata"].pop("uid", None)
        live = self.objects.get((kind, key))
        if uid is not None and (live is None or uid_of(live) != uid):
            raise ConflictError(f"{kind} {key}: uid precondition failed")
        entry = (kind, key, names.FIELD_MANAGER)
        if live is None:
            stored = self.put_new(kind, wanted)
        else:
            if kind.kind == "Job" and _image_free(live) != _image_free({**live, **wanted}):
                raise InvalidError(f"{kind} {key}: spec.template: field is immutable")
            merged = _merge(_prune(live, self._applied.get(entry, {}), wanted), wanted)
            if _claim_templates(merged) != _claim_templates(live):
                raise InvalidError(f"{kind} {key}: spec.volumeClaimTemplates: field is immutable")
            if merged == live:
                return copy.deepcopy(live)
            if merged.get("spec") != live.get("spec"):
                merged["metadata"]["generation"] += 1
            stored = self.store(kind, merged)
        self._applied[entry] = wanted
        return stored

    def _apply_status(self, kind: Kind, manifest: Manifest) -> Manifest:
        live = self._stored(kind, key_of(manifest))
        if manifest["metadata"].get("uid") not in (None, uid_of(live)):
            raise ConflictError(f"{kind} {key_of(manifest)}: uid precondition failed")
        if live.get("status") == manifest["status"]:
            return copy.deepcopy(live)
        return self.store(kind, {**live, "status": manifest["status"]})


def _claim_templates(manifest: Manifest) -> Any:
    return (manifest.get("spec") or {}).get("volumeClaimTemplates")


def _image_free(job: Manifest) -> Any:
    return job["spec"]["template"]["spec"]["containers"]


def _merge(live: Any, wanted: Any) -> Any:
    if isinstance(live, dict) and isinstance(wanted, dict):
        return {**live, **{k: _merge(live.get(k), v) for k, v in wanted.items()}}
    key = _list_key(wanted)
    if isinstance(live, list) and key is not None:
        entries = {entry.get(key): entry for entry in live}
        for entry in wanted:
            entries[entry[key]] = _merge(entries.get(entry[key]), entry)
        return list(entries.values())
    return copy.deepcopy(wanted)


def _prune(live: Any, before: Any, now: Any) -> Any:
    """Fields that were applied and are not any more."""
    if not (isinstance(live, dict) and isinstance(before, dict) and isinstance(now, dict)):
        return live
    kept = {}
    for field, value in live.items():
        if field in before and field not in now:
            continue
        kept[field] = _prune(value, before.get(field), now.get(field))
    return kept


def _list_key(entries: Any) -> str | None:
    if not isinstance(entries, list) or not entries:
        return None
    for key in _LIST_KEYS:
        if all(isinstance(entry, dict) and key in entry for entry in entries):
            return key
    return None
