"""Turns events into queue items and queue items into reconciles.

Owns: which objects a change concerns, the workers, what happens when a reconcile fails, the full
lists that find missed deletions. Does not own: the steps of a reconcile (``reconcile.py``,
``pools.py``), where events come from (``feed.py``). Next: ``reconcile.py``.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

import structlog

from terrace.api import names
from terrace.api.names import Key
from terrace.controller.cache import Change, FullList, claimed_names
from terrace.controller.echoes import Echoes
from terrace.controller.kinds import (
    LABELLED_KINDS,
    MODEL,
    NODE,
    POD,
    POOL,
    WATCHED_KINDS,
    Kind,
    Manifest,
    controller_of,
    is_deleting,
    key_of,
    labels_of,
)
from terrace.controller.observe import pool_name
from terrace.controller.pods import is_bound
from terrace.controller.pools import reconcile_pool
from terrace.controller.port import ClusterError, ConflictError
from terrace.controller.queue import WorkQueue
from terrace.controller.reconcile import reconcile_model
from terrace.controller.trust import BadTrustKeyError, ensure_trust_key
from terrace.controller.unused import used_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from terrace.controller.context import Context, Outcome
    from terrace.controller.metrics import Metrics

log = structlog.get_logger()

SELECTOR = f"{names.MANAGED_BY}={names.MANAGED_BY_VALUE}"
DEBOUNCE_S = 1.0
"""Nodes come and change in bursts; what they concern waits for the end of one."""
COUNT_DEBOUNCE_S = 5.0
"""How far the number of models in a pool's status may lag behind."""


class Item(NamedTuple):
    """A model or a pool to reconcile; a node without a name stands for all of them."""

    kind: Kind
    key: Key


CAPACITY = Item(NODE, Key("", ""))
"""Stands for what a change of nodes, or of what is bound to them, concerns."""


class Controller:
    """One per process. Everything but ``run_worker`` and ``run_resync`` works in virtual time."""

    def __init__(
        self, context: Context, clock: Callable[[], float], rng: Random, metrics: Metrics
    ) -> None:
        self.context = context
        self.queue: WorkQueue[Item] = WorkQueue(clock, rng)
        self.metrics = metrics
        context.count_plan = metrics.plans.inc
        context.cache.tell = metrics.objects.see
        self.is_synced = False
        self._clock = clock
        self._rng = rng
        self._unplaced: set[Key] = set()
        self._echoes = Echoes(clock)
        self._nodes_changed = False
        self._listed_at: dict[Kind, float] = {}
        self._event_at: dict[Kind, float] = {}

    @property
    def is_idle(self) -> bool:
        """Nothing is to be done now."""
        return not self.queue and not self.queue.num_in_flight

    def see(self, kind: Kind, manifest: Manifest, *, is_deleted: bool = False) -> None:
        """Take one event of a watch."""
        self._event_at[kind] = self._clock()
        self.metrics.watch_events.labels(kind.plural).inc()
        if is_deleted:
            version = str(manifest["metadata"].get("resourceVersion", ""))
            change = self.context.cache.drop(
                kind, key_of(manifest), int(version) if version.isdigit() else 0
            )
        else:
            change = self.context.cache.put(kind, manifest)
        if change is not None:
            self._concern(change)

    async def resync(self) -> None:
        """List everything, take over what the watches missed, and queue all models and pools."""
        context = self.context
        context.trust_key = await ensure_trust_key(context.cluster, context.config.pod_namespace)
        for kind in WATCHED_KINDS:
            selector = SELECTOR if kind in LABELLED_KINDS else ""
            scopes = context.config.namespaces if kind.namespaced else (None,)
            for namespace in scopes:
                full = FullList(context.cache, kind, namespace, self._listed)
                full.finish(await context.cluster.list_all(kind, namespace, selector, full.take))
            self._listed_at[kind] = self._clock()
            self.metrics.full_lists.labels(kind.plural).inc()
        self.is_synced = True
        for key in self.context.cache.keys(POOL):
            self.queue.add(Item(POOL, key))
        # After a restart, claims of the strongest are known before others look for room.
        cache = self.context.cache
        for key in cache.strongest_first(cache.keys(MODEL)):
            self.queue.add(Item(MODEL, key))

    def _listed(self, change: Change) -> None:
        if not self.is_synced:
            return  # Everything is queued at the end.
        if change.new is None:
            self.metrics.missed_deletions.labels(change.kind.plural).inc()
        self._concern(change)

    async def run_resync(self) -> None:
        """Full lists for ever. The first one must have succeeded."""
        while True:
            period_s = self.context.config.resync_s
            await asyncio.sleep(period_s * self._rng.uniform(1.0, 1.25))
            try:
                await self.resync()
            except (ClusterError, BadTrustKeyError) as error:
                log.warning("full list failed, the watches go on", error=str(error))

    async def run_worker(self) -> None:
        """Reconcile what the queue hands out, for ever."""
        while True:
            await self.process(await self.queue.get())
            # A reconcile that has nothing to write awaits nothing, and many are queued at once.
            await asyncio.sleep(0)

    async def process(self, item: Item) -> None:
        """One reconcile; a failure is logged and tried again, never raised."""
        started_at, outcome = time.monotonic(), "error"
        try:
            outcome = await self._attempt(item) if item != CAPACITY else self._look_again()
        finally:
            self.queue.done(item)
            seconds = time.monotonic() - started_at
            self.metrics.observe_reconcile(item.kind.kind, outcome, seconds)

    async def _attempt(self, item: Item) -> str:
        try:
            done = await self._reconcile(item)
        except ConflictError as error:
            delay_s = self.queue.retry(item)
            log.info("conflict", item=str(item.key), retry_s=round(delay_s, 1), error=str(error))
            return "conflict"
        except ClusterError as error:
            delay_s = self.queue.retry(item)
            log.warning(
                "the cluster refused", item=str(item.key), retry_s=delay_s, error=str(error)
            )
            return "unavailable"
        except Exception:
            # A defect of ours must not stop the other models.
            delay_s = self.queue.retry(item)
            log.exception("reconcile failed", item=str(item.key), retry_s=delay_s)
            return "error"
        self.queue.forget(item)
        self._settle(item, done)
        return "success"

    async def _reconcile(self, item: Item) -> Outcome:
        if item.kind == POOL:
            return await reconcile_pool(self.context, item.key)
        tells = self._echoes.begin(item.key)
        if not tells:
            self._look_soon(item)
        return await reconcile_model(self.context, item.key, tells=tells)

    def observe_metrics(self) -> None:
        """Bring the gauges up to date; called when metrics are read."""
        metrics, queue, now = self.metrics, self.queue, self._clock()
        metrics.queue_depth.set(len(queue))
        metrics.queue_in_flight.set(queue.num_in_flight)
        metrics.queue_oldest.set(queue.oldest_s)
        metrics.queue_totals.adds, metrics.queue_totals.retries = queue.num_adds, queue.num_retries
        for kind in WATCHED_KINDS:
            metrics.cache_objects.labels(kind.plural).set(self.context.cache.size(kind))
            if kind in self._event_at:
                metrics.cache_event_age.labels(kind.plural).set(now - self._event_at[kind])
            if kind in self._listed_at:
                metrics.cache_list_age.labels(kind.plural).set(now - self._listed_at[kind])

    def _settle(self, item: Item, done: Outcome) -> None:
        if done.requeue_s is not None:
            self.queue.add_after(item, done.requeue_s)
        if item.kind == MODEL:
            (self._unplaced.discard if done.is_placed else self._unplaced.add)(item.key)
        for key in done.wake:
            self.queue.add(Item(MODEL, key))
        if done.collector is not None:
            # At once: what is not noted before its model is deleted is never collected.
            self.queue.add(Item(POOL, done.collector))

    def _concern(self, change: Change) -> None:
        """Queue what a change concerns: the object itself, its owner, and what depends on it."""
        if change.kind == MODEL:
            self._concern_model(change)
        elif change.kind == POOL:
            self._concern_pool(change)
        elif change.kind == NODE:
            self._nodes_changed = True
            self._concern_unplaced()
        else:
            self._concern_owner(change)

    def _concern_model(self, change: Change) -> None:
        if _same_intent(change.old, change.new):
            self._look_soon(Item(MODEL, change.key))
            return  # Its status changed, and that concerns nobody else.
        self._echoes.ask(change.key)
        # What a user has changed goes before the echoes of what pods and others do.
        self.queue.add(Item(MODEL, change.key), is_urgent=change.old is not None)
        if _for_pools(change.old) != _for_pools(change.new):
            for model in filter(None, (change.old, change.new)):
                pool = Key(change.key.namespace, pool_name(model))
                self.queue.add_after(Item(POOL, pool), COUNT_DEBOUNCE_S)
        for model in filter(None, (change.old, change.new)):
            for name in claimed_names(model):
                for rival in self.context.cache.models_named(name):
                    self.queue.add(Item(MODEL, key_of(rival)))
        if change.new is None:
            self._unplaced.discard(change.key)
            self._concern_unplaced()

    def _concern_pool(self, change: Change) -> None:
        self.queue.add(Item(POOL, change.key))
        if not _same_intent(change.old, change.new):
            for model in self.context.cache.models_in_pool(change.key):
                self.queue.add(Item(MODEL, key_of(model)))

    def _concern_owner(self, change: Change) -> None:
        for child in (change.old, change.new):
            if child is None:
                continue
            namespace, owner = change.key.namespace, controller_of(child)
            if change.kind == POD:
                model, pool = (
                    labels_of(child).get(n) for n in (names.LABEL_MODEL, names.LABEL_POOL)
                )
                if model:
                    self._look_soon(Item(MODEL, Key(namespace, model)))
                elif pool:  # It deletes unused files, and its last word says which.
                    self._look_soon(Item(POOL, Key(namespace, pool)))
            elif owner is not None and owner.get("kind") in (MODEL.kind, POOL.kind):
                kind = MODEL if owner["kind"] == MODEL.kind else POOL
                self._look_soon(Item(kind, Key(namespace, owner["name"])))
        if change.kind == POD and _frees_or_takes(change):
            self._concern_unplaced()

    def _look_soon(self, item: Item) -> None:
        self.queue.add_after(item, self._echoes.wait_s)

    def _concern_unplaced(self) -> None:
        # One item for all of them: a thousand nodes may change while a thousand models wait.
        if self._unplaced or self._nodes_changed:
            self.queue.add_after(CAPACITY, DEBOUNCE_S)

    def _look_again(self) -> str:
        """Queue what the cluster's capacity concerns: models without a place, pools' statuses."""
        for key in self.context.cache.strongest_first(self._unplaced):
            self.queue.add(Item(MODEL, key))
        for key in self.context.cache.keys(POOL) if self._nodes_changed else ():
            self.queue.add(Item(POOL, key))
        self._nodes_changed = False
        return "success"


def _same_intent(old: Manifest | None, new: Manifest | None) -> bool:
    if old is None or new is None:
        return False
    return old.get("spec") == new.get("spec") and is_deleting(old) == is_deleting(new)


def _for_pools(model: Manifest | None) -> tuple[str, dict[str, int]] | None:
    """What a pool's status says of a model: that it is there, and which files it names."""
    return None if model is None else (pool_name(model), used_files(model))


def _frees_or_takes(change: Change) -> bool:
    was_bound = change.old is not None and is_bound(change.old)
    now_bound = change.new is not None and is_bound(change.new)
    return was_bound != now_bound
