"""Does a live object still say what we applied? And the digest that tells what we applied.

Owns: the comparison of a wanted manifest with a live one, the digest, picking live values at a
wanted manifest's paths. Does not own: what to do about a difference (``diff.py``). Pure.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from terrace.api import names
from terrace.api.quantity import parse_quantity
from terrace.controller.kinds import Manifest, annotations_of

_LIST_KEYS = ("name", "type", "uid", "containerPort", "port", "mountPath")
_QUANTITY_FIELDS = frozenset({"requests", "limits", "sizeLimit"})


def digest_of(manifest: Manifest) -> str:
    """32 hex digits over the manifest as JSON with sorted keys."""
    body = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(body.encode()).hexdigest()[:32]


def sealed(manifest: Manifest) -> Manifest:
    """The manifest with its own digest as annotation ``terrace.dev/applied``."""
    metadata = manifest["metadata"]
    annotations = {**annotations_of(manifest), names.ANNOTATION_APPLIED: digest_of(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def is_applied(live: Manifest, wanted: Manifest) -> bool:
    """Whether ``wanted`` (sealed) was applied last and nobody changed a field of it since."""
    applied = annotations_of(live).get(names.ANNOTATION_APPLIED)
    return applied == annotations_of(wanted)[names.ANNOTATION_APPLIED] and covers(live, wanted)


def covers(live: Any, wanted: Any, *, is_quantity: bool = False) -> bool:
    """Whether every value of ``wanted`` stands in ``live``; what others added does not matter."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            key in live
            and covers(live[key], value, is_quantity=is_quantity or key in _QUANTITY_FIELDS)
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(live, list) and _covers_list(live, wanted)
    return bool(live == wanted) or (is_quantity and _same_quantity(live, wanted))


def taken_from(live: Any, wanted: Any) -> Any:
    """The live values at ``wanted``'s paths: applying them changes nothing but keeps ownership."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return {key: taken_from(live[key], value) for key, value in wanted.items() if key in live}
    key = _list_key(wanted) if isinstance(wanted, list) and isinstance(live, list) else None
    if key is None:
        return live
    theirs = {entry.get(key): entry for entry in live if isinstance(entry, dict)}
    taken = [taken_from(theirs[entry[key]], entry) for entry in wanted if entry[key] in theirs]
    return taken or live


def _covers_list(live: list[Any], wanted: list[Any]) -> bool:
    key = _list_key(wanted)
    if key is None:
        return len(live) == len(wanted) and all(map(covers, live, wanted))
    theirs = {entry.get(key): entry for entry in live if isinstance(entry, dict)}
    return all(entry[key] in theirs and covers(theirs[entry[key]], entry) for entry in wanted)


def _list_key(entries: list[Any]) -> str | None:
    # Lists of named things are merged by the API server; every other list is one value.
    for key in _LIST_KEYS:
        if entries and all(isinstance(entry, dict) and key in entry for entry in entries):
            return key
    return None


def _same_quantity(live: object, wanted: object) -> bool:
    # The API server rewrites quantities: 1073741824 comes back as 1Gi.
    try:
        return parse_quantity(str(live)) == parse_quantity(str(wanted))
    except ValueError:
        return live == wanted
