"""Reading what ``terrace explain`` is about, through the cluster port.

Owns: which objects are read. Does not own: HTTP (``cluster.py``), what a user may not read
(``snapshot.py``) or what it all means (``explain_model.py``, ``explain_pool.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.names import Key
from terrace.api.pool import PoolSpec
from terrace.cli.errors import InputError
from terrace.cli.explain_file import fetch_jobs
from terrace.cli.explain_pool import PoolScene
from terrace.cli.installation import read_installation
from terrace.cli.profiles import Learned
from terrace.cli.snapshot import MANAGED, Snapshot
from terrace.cli.walk import Scene
from terrace.controller import pods
from terrace.controller.kinds import (
    CHILD_KINDS,
    CLAIM,
    EVENT,
    MODEL,
    POOL,
    Manifest,
    uid_of,
)
from terrace.controller.observe import observe, pool_name
from terrace.controller.parse import InvalidSpecError, parse_spec
from terrace.planner.inputs import Cluster

if TYPE_CHECKING:
    from datetime import datetime

    from terrace.cli.reader import ClusterReader

MAX_TROUBLED = 5
"""Pods whose events are read."""


def model_scene(reader: ClusterReader, key: Key, now: datetime) -> Scene:
    """Everything about one model. Raises CommandError."""
    seen = Snapshot(reader, key.namespace)
    hint = f"see `kubectl get im -n {key.namespace}`"
    model = seen.required(MODEL, key, hint)
    pool = pool_name(model)
    if pool:
        seen.one(POOL, Key(key.namespace, pool))
    for kind in CHILD_KINDS:
        seen.read(kind, key.namespace, labels=MANAGED)
    seen.read_usage()
    installed = read_installation(seen)
    observed = observe(seen.cache, key)
    if observed is None:  # A name that the cache does not take for one of a model.
        raise InputError(f"InferenceModel {key} cannot be read")
    troubled = [pod for pod in observed.pods if not pods.is_ready(pod)][:MAX_TROUBLED]
    about = [uid_of(each) for each in (*troubled, *observed.sets, *fetch_jobs(observed))]
    events = {uid: _events(seen, key.namespace, uid) for uid in about if uid}
    return Scene(
        observed,
        now,
        Cluster(tuple(observed.nodes), observed.used, installed.table),
        Learned(seen.cache, installed),
        events,
        gateways=installed.component("gateway"),
        operators=installed.component("operator"),
        gaps=tuple(dict.fromkeys(seen.gaps)),
    )


def pool_scene(reader: ClusterReader, key: Key) -> PoolScene:
    """Everything about one pool. Raises CommandError."""
    seen = Snapshot(reader, key.namespace)
    pool = seen.required(POOL, key, f"see `kubectl get ipool -n {key.namespace}`")
    models = [model for model in seen.read(MODEL, key.namespace) if pool_name(model) == key.name]
    seen.read_usage()
    cluster = Cluster(seen.cache.inventory.nodes, seen.usage_for(pool))
    claim = seen.one(CLAIM, Key(key.namespace, _claim_name(pool, key)))
    events: tuple[Manifest, ...] = ()
    if claim is not None and (claim.get("status") or {}).get("phase") != "Bound":
        events = _events(seen, key.namespace, uid_of(claim))
    warnings = dict.fromkeys(
        f"event {each.get('reason', '')}: {each.get('message', '')}"
        for each in events
        if each.get("type") == "Warning"
    )
    return PoolScene(
        pool, cluster, tuple(models), claim, tuple(warnings), tuple(dict.fromkeys(seen.gaps))
    )


def _claim_name(pool: Manifest, key: Key) -> str:
    try:
        own = parse_spec(PoolSpec, pool).model_cache.claim_name
    except InvalidSpecError:
        own = None
    return own or names.model_cache_claim_name(key.name)


def _events(seen: Snapshot, namespace: str, uid: str) -> tuple[Manifest, ...]:
    """Events of one object, the oldest first."""
    found = seen.read(EVENT, namespace, fields=f"involvedObject.uid={uid}")
    return tuple(sorted(found, key=_event_time))


def _event_time(event: Manifest) -> str:
    series = event.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("eventTime"),
        event["metadata"].get("creationTimestamp"),
    )
    return str(next((each for each in times if each), ""))
