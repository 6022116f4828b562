"""What the cluster looked like at the last event: objects, projected to what we read.

Owns: the objects, the guard against stale events, the index by owner, pool, model and served
name. Does not own: watching (``feed.py``), listing (``resync.py``) or what a change means
(``controller.py``). No I/O. Next: ``observe.py`` takes one model's view out of it.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from terrace.api import names
from terrace.controller.inventory import Inventory
from terrace.controller.kinds import (
    CLAIM,
    MODEL,
    POD,
    Kind,
    Manifest,
    controller_of,
    key_of,
    labels_of,
)
from terrace.controller.packing import Packer
from terrace.controller.projection import project

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from terrace.api.names import Key
    from terrace.controller.port import Listing

MAX_TOMBSTONES = 4096


@dataclass(frozen=True, slots=True)
class Change:
    """One object before and after; None where it did not, or does not, exist."""

    kind: Kind
    key: Key
    old: Manifest | None
    new: Manifest | None


def index_keys(kind: Kind, manifest: Manifest) -> Iterator[Hashable]:
    """Under which keys an object is found: its owner's uid, its model, a model's pool and names."""
    namespace = manifest["metadata"].get("namespace", "")
    if owner := controller_of(manifest):
        yield ("owner", owner.get("uid"))
    if kind in (POD, CLAIM) and (model := labels_of(manifest).get(names.LABEL_MODEL)):
        yield ("model", namespace, model)
    if kind == MODEL:
        yield from (("name", name) for name in claimed_names(manifest))
        pool_ref = (manifest.get("spec") or {}).get("poolRef")
        if isinstance(pool_ref, dict):
            yield ("pool", namespace, str(pool_ref.get("name")))
        if digest := _exceeded_digest(manifest.get("status") or {}):
            yield ("exceeded", digest)


def priority_of(model: Manifest) -> int:
    """A stored model's spec.priority, read without trusting that it parses."""
    wanted = (model.get("spec") or {}).get("priority")
    return wanted if isinstance(wanted, int) else 0


def claimed_names(model: Manifest) -> tuple[str, ...]:
    """The names a stored model asks for, its adapters' too; it need not parse."""
    spec = model.get("spec") or {}
    wanted = [name for name in _list(spec.get("servedNames")) if isinstance(name, str)]
    return tuple(dict.fromkeys((*(wanted or [model["metadata"]["name"]]), *adapter_names(model))))


def adapter_names(model: Manifest) -> tuple[str, ...]:
    """Names that clients call a stored model's adapters by; it need not parse."""
    entries = _list((model.get("spec") or {}).get("adapters"))
    called = (entry.get("name") for entry in entries if isinstance(entry, dict))
    return tuple(name for name in called if isinstance(name, str))


def _exceeded_digest(status: Manifest) -> str:
    """Digest of the model's file where a replica took more than its plan counted; else empty."""
    one, model = status.get("measured"), status.get("model")
    if not isinstance(one, dict) or not isinstance(model, dict):
        return ""
    places = ("Host", "Device")
    pairs = [(one.get(f"{p.lower()}Bytes"), one.get(f"planned{p}Bytes")) for p in places]
    more = any(isinstance(a, int) and isinstance(b, int) and a > b for a, b in pairs)
    return str(model.get("digest", "")) if more else ""


class _Stored(NamedTuple):
    """One object, packed without its version: two that differ in nothing else compare equal."""

    data: bytes
    version: str | None


class Cache:
    """Objects by kind and key; ``put`` and ``drop`` say what changed.

    Whoever asks for an object gets a copy of its own.
    """

    def __init__(self) -> None:
        self._objects: dict[Kind, dict[Key, _Stored]] = {}
        self._packers: defaultdict[Kind, Packer] = defaultdict(Packer)
        self._index: dict[Hashable, dict[tuple[Kind, Key], None]] = {}
        self._priorities: dict[Key, int] = {}
        """Of models that have one."""
        self._tombstones: OrderedDict[tuple[Kind, Key], int] = OrderedDict()
        self._doomed: OrderedDict[str, None] = OrderedDict()
        self.inventory = Inventory()
        """Nodes, and what replicas take of them: told of every change."""
        self.tell: Callable[[Change], object] = lambda _: None
        """Called with every change, whether an event or a write of ours brought it."""

    def put(self, kind: Kind, manifest: Manifest) -> Change | None:
        """Store an object; None when it is older than, or reads the same as, what is stored."""
        key, version = key_of(manifest), _number(manifest["metadata"].get("resourceVersion"))
        before = self._objects.get(kind, {}).get(key)
        known = _number(before.version) if before is not None else 0
        if version < max(known, self._tombstones.get((kind, key), -1) + 1):
            return None
        new = self._expected(project(kind, manifest))
        stored = self._pack(kind, new)
        self._objects.setdefault(kind, {})[key] = stored
        if before is not None and before.data == stored.data:
            return None
        old = self._unpack(kind, before) if before is not None else None
        self._unindex(kind, key, old)
        for index_key in index_keys(kind, new):
            self._index.setdefault(index_key, {})[kind, key] = None
        if kind == MODEL and (priority := priority_of(new)):
            self._priorities[key] = priority
        self.inventory.see(kind, old, new)
        return self._changed(Change(kind, key, old, new))

    def drop(self, kind: Kind, key: Key, version: int) -> Change | None:
        """Forget an object that was deleted at ``version``; None when a newer one is stored."""
        known = self._objects.get(kind, {}).get(key)
        if known is not None and version < _number(known.version):
            return None
        self._tombstones[kind, key] = max(version, self._tombstones.get((kind, key), 0))
        self._tombstones.move_to_end((kind, key))
        while len(self._tombstones) > MAX_TOMBSTONES:
            self._tombstones.popitem(last=False)
        stored = self._objects.get(kind, {}).pop(key, None)
        if stored is None:
            return None
        old = self._unpack(kind, stored)
        self._unindex(kind, key, old)
        self.inventory.see(kind, old, None)
        return self._changed(Change(kind, key, old, None))

    def replace(self, kind: Kind, listing: Listing, namespace: str | None) -> list[Change]:
        """Take over a complete list: also forget what vanished without an event."""
        changes: list[Change] = []
        full = FullList(self, kind, namespace, changes.append)
        for item in listing.items:
            full.take(item)
        full.finish(listing.resource_version)
        return changes

    def forget_doom(self, uid: str) -> None:
        """The cluster has told about an object that was expected to go."""
        self._doomed.pop(uid, None)

    def expect_deletion(self, kind: Kind, key: Key, uid: str) -> None:
        """Show that object as on its way out until the cluster, or the next full list, tells."""
        self._doomed[uid] = None
        while len(self._doomed) > MAX_TOMBSTONES:
            self._doomed.popitem(last=False)
        manifest = self.get(kind, key)
        if manifest is not None:
            self._objects[kind][key] = self._pack(kind, self._expected(manifest))

    def get(self, kind: Kind, key: Key) -> Manifest | None:
        """One object."""
        stored = self._objects.get(kind, {}).get(key)
        return self._unpack(kind, stored) if stored is not None else None

    def of_kind(self, kind: Kind) -> Iterable[Manifest]:
        """All objects of a kind."""
        return (self._unpack(kind, stored) for stored in self._objects.get(kind, {}).values())

    def keys(self, kind: Kind) -> list[Key]:
        """Keys of all objects of a kind."""
        return list(self._objects.get(kind, {}))

    def size(self, kind: Kind) -> int:
        """How many objects of a kind are stored."""
        return len(self._objects.get(kind, {}))

    def owned_by(self, owner_uid: str) -> list[tuple[Kind, Manifest]]:
        """Objects controlled by the owner with that uid."""
        return self._found(("owner", owner_uid))

    def pods_of_model(self, model: Key) -> list[Manifest]:
        """Pods labelled with the model, whoever owns them."""
        return [found for kind, found in self._found(("model", *model)) if kind == POD]

    def claims_of_model(self, model: Key) -> list[Manifest]:
        """Claims labelled with the model: those that its replicas have."""
        return [found for kind, found in self._found(("model", *model)) if kind == CLAIM]

    def models_in_pool(self, pool: Key) -> list[Manifest]:
        """Models that refer to the pool, whether it exists or not."""
        return [model for _, model in self._found(("pool", *pool))]

    def priorities_in_pool(self, pool: Key) -> dict[Key, int]:
        """spec.priority of each model that refers to the pool, without reading the models."""
        return {
            key: self._priorities.get(key, 0) for _, key in self._index.get(("pool", *pool), {})
        }

    def strongest_first(self, models: Iterable[Key]) -> list[Key]:
        """Models by spec.priority, then by name, without reading them."""
        return sorted(models, key=lambda key: (-self._priorities.get(key, 0), key))

    def models_exceeding(self, digest: str) -> list[Manifest]:
        """Models of the file ``digest`` whose replicas took more than their plans counted."""
        return [model for _, model in self._found(("exceeded", digest))]

    def models_named(self, served_name: str) -> list[Manifest]:
        """Models that ask for a served name, in any namespace."""
        return [model for _, model in self._found(("name", served_name))]

    def _pack(self, kind: Kind, manifest: Manifest) -> _Stored:
        metadata = manifest["metadata"]
        bare = {**manifest, "metadata": {**metadata, "resourceVersion": None}}
        return _Stored(self._packers[kind].pack(bare), metadata.get("resourceVersion"))

    def _unpack(self, kind: Kind, stored: _Stored) -> Manifest:
        manifest = self._packers[kind].unpack(stored.data)
        manifest["metadata"]["resourceVersion"] = stored.version
        return manifest

    def _changed(self, change: Change) -> Change:
        self.tell(change)
        return change

    def _expected(self, manifest: Manifest) -> Manifest:
        metadata = manifest["metadata"]
        if metadata.get("uid") not in self._doomed or "deletionTimestamp" in metadata:
            return manifest
        return {**manifest, "metadata": {**metadata, "deletionTimestamp": "expected"}}

    def _found(self, index_key: Hashable) -> list[tuple[Kind, Manifest]]:
        found = self._index.get(index_key, {})
        return [(kind, self._unpack(kind, self._objects[kind][key])) for kind, key in sorted(found)]

    def _unindex(self, kind: Kind, key: Key, old: Manifest | None) -> None:
        if kind == MODEL:
            self._priorities.pop(key, None)
        for index_key in index_keys(kind, old) if old else ():
            entries = self._index.get(index_key, {})
            entries.pop((kind, key), None)
            if not entries:
                self._index.pop(index_key, None)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


class FullList:
    """A complete list that is taken over object by object."""

    def __init__(
        self, cache: Cache, kind: Kind, namespace: str | None, changed: Callable[[Change], object]
    ) -> None:
        self._cache, self._kind, self._namespace = cache, kind, namespace
        self._changed = changed
        self._listed: set[Key] = set()

    def take(self, item: Manifest) -> None:
        """One object of the list; seeing it twice is fine."""
        self._cache.forget_doom(item["metadata"].get("uid", ""))
        self._listed.add(key_of(item))
        self._tell(self._cache.put(self._kind, item))

    def finish(self, version: str) -> None:
        """Forget what was not in the list, unless it is newer than the list's version."""
        for key in self._cache.keys(self._kind):
            is_in_scope = self._namespace in (None, key.namespace) or not self._kind.namespaced
            if is_in_scope and key not in self._listed:
                self._tell(self._cache.drop(self._kind, key, int(version or 0)))

    def _tell(self, change: Change | None) -> None:
        if change is not None:
            self._changed(change)


def _number(version: object) -> int:
    # Resource versions are decimal numbers that grow per resource (KEP-5504); anything else is 0.
    text = str(version)
    return int(text) if text.isdigit() else 0
