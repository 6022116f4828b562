"""Nodes as the planner sees them, and what replicas take of them, kept up to date event by event.

Owns: NodeFacts of every node, memory and devices by node where a pod is bound, by flavor where it
is not yet, reservations of placements that no set stands for yet. Does not own: objects
(``cache.py``, which tells of every change), what is free (``planner``). No I/O. Next:
``observe.py`` asks for one model's view.

Nothing here walks all pods or parses all nodes: a view costs what the model itself has, plus one
look at each group of replicas that wait for a node.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from terrace.api import names
from terrace.api.names import Key
from terrace.api.quantity import parse_bytes
from terrace.controller import pods
from terrace.controller.kinds import (
    MODEL,
    NODE,
    POD,
    STATEFULSET,
    Kind,
    Manifest,
    controller_of,
    key_of,
    labels_of,
    uid_of,
)
from terrace.planner.inputs import Usage, unbound
from terrace.planner.nodes import NodeFacts, node_facts

if TYPE_CHECKING:
    from terrace.api.pool import Flavor
    from terrace.planner.plan import OffloadPlan

MEMORY = "memory"
Amounts = tuple[tuple[str, int], ...]
"""What one replica requests: (MEMORY or an extended resource, bytes or devices)."""


class Lane(NamedTuple):
    """Where replicas without a node wait: a flavor's name and its node selector."""

    flavor: str
    selector: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Replicas that no node has yet."""

    lane: Lane
    count: int
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class _Set:
    """One StatefulSet."""

    model: Key
    lane: Lane
    replicas: int
    amounts: Amounts


class Inventory:
    """One per cache."""

    def __init__(self) -> None:
        self._nodes: dict[str, NodeFacts] = {}
        self._sorted: tuple[NodeFacts, ...] | None = ()
        self._labelled: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._bound: dict[str, Counter[str]] = defaultdict(Counter)
        self._pods: dict[Key, dict[str, tuple[str, Amounts]]] = {}
        self._num_bound: Counter[str] = Counter()
        self._sets: dict[Key, dict[str, _Set]] = {}
        self._waiting: dict[Key, dict[str, _Waiting]] = {}
        self._lanes: dict[Lane, Counter[str]] = {}

    @property
    def nodes(self) -> tuple[NodeFacts, ...]:
        """All nodes, by name, so that equal clusters give equal plans."""
        if self._sorted is None:
            self._sorted = tuple(self._nodes[name] for name in sorted(self._nodes))
        return self._sorted

    def matching(self, selector: Mapping[str, str]) -> tuple[NodeFacts, ...]:
        """The nodes that have all labels of ``selector``, by name."""
        if not selector:
            return self.nodes
        names_of = sorted((self._labelled.get(label, set()) for label in selector.items()), key=len)
        return tuple(self._nodes[name] for name in sorted(set.intersection(*names_of)))

    def see(self, kind: Kind, old: Manifest | None, new: Manifest | None) -> None:
        """Take over one change of a projected object."""
        if kind == NODE:
            self._see_node(old, new)
        elif kind == POD:
            self._see_pod(old, new)
        elif kind == STATEFULSET:
            self._see_set(old, new)
        elif kind == MODEL and new is None and old is not None:
            self.release(key_of(old))

    def used_by_others(
        self, model: Key, flavors: Mapping[str, Mapping[str, str]] | None = None
    ) -> Usage:
        """What all replicas but the model's own take, as long as nothing else is seen.

        ``flavors``: name -> node selector. What waits counts for each of them that it may land on
        a node of; where none are given, for the flavor of that name alone.
        """
        own_nodes: dict[str, Counter[str]] = defaultdict(Counter)
        for node, amounts in self._pods.get(model, {}).values():
            for name, amount in amounts:
                own_nodes[name][node] += amount
        waiting: dict[str, Counter[str]] = defaultdict(Counter)
        for lane, name, amount in self._waiting_of_others(model):
            if flavors is None:
                waiting[name][unbound(lane.flavor)] += amount
            for flavor, selector in (flavors or {}).items():
                if self._may_meet(lane, selector):
                    waiting[name][unbound(flavor)] += amount
        resources = self._bound.keys() | waiting.keys()
        views = {
            name: _View(self._bound[name], own_nodes.get(name, {}), waiting.get(name, {}))
            for name in resources
        }
        memory = views.pop(MEMORY, _View({}, {}, {}))
        return Usage(memory, views)

    def reserve(self, model: Key, flavor: Flavor, plan: OffloadPlan, replicas: int) -> None:
        """A placement was decided: it counts from now on, until the set is seen or ``release``."""
        amounts = [(MEMORY, plan.memory_request_bytes)]
        if plan.device is not None and plan.device.resource:
            amounts.append((plan.device.resource, plan.device.count))
        lane = Lane(flavor.name, tuple(sorted(flavor.node_selector.items())))
        sets = self._sets.get(model, {}).values()
        there = sum(each.replicas for each in sets if each.lane.flavor == flavor.name)
        self._wait(model, "", _Waiting(lane, replicas - there, tuple(amounts)))

    def release(self, model: Key) -> None:
        """The decision is no more."""
        self._wait(model, "", None)

    def _see_node(self, old: Manifest | None, new: Manifest | None) -> None:
        was = self._nodes.pop(old["metadata"]["name"], None) if old is not None else None
        if was is not None:
            for label in was.labels.items():
                self._labelled[label].discard(was.name)
                if not self._labelled[label]:
                    del self._labelled[label]
        if new is not None:
            now = node_facts(new)
            self._nodes[now.name] = now
            for label in now.labels.items():
                self._labelled[label].add(now.name)
        self._sorted = None

    def _see_pod(self, old: Manifest | None, new: Manifest | None) -> None:
        was, now = _held(old), _held(new)
        if was == now:
            return
        for held, sign in ((was, -1), (now, 1)):
            if held is None:
                continue
            for name, amount in held.amounts:
                _add(self._bound[name], held.node, sign * amount)
            _add(self._num_bound, held.owner, sign)
        if was is not None:
            theirs = self._pods.get(was.model, {})
            theirs.pop(was.uid, None)
            if not theirs:
                self._pods.pop(was.model, None)
        if now is not None:
            self._pods.setdefault(now.model, {})[now.uid] = (now.node, now.amounts)
        for held in (was, now):
            if held is not None:
                self._count_waiting(held.model, held.owner)

    def _see_set(self, old: Manifest | None, new: Manifest | None) -> None:
        for gone in (old,) if old is not None else ():
            model, uid = _model_of(gone), uid_of(gone)
            self._sets.get(model, {}).pop(uid, None)
            if not self._sets.get(model):
                self._sets.pop(model, None)
            self._wait(model, uid, None)
        if new is None:
            return
        model, uid, found = _model_of(new), uid_of(new), _set_of(new)
        self._sets.setdefault(model, {})[uid] = found
        self._count_waiting(model, uid)
        promised = self._waiting.get(model, {}).get("")
        if promised is not None and promised.lane.flavor == found.lane.flavor:
            self.release(model)

    def _count_waiting(self, model: Key, uid: str) -> None:
        found = self._sets.get(model, {}).get(uid)
        if found is not None:
            missing = found.replicas - self._num_bound[uid]
            self._wait(model, uid, _Waiting(found.lane, missing, found.amounts))

    def _wait(self, model: Key, uid: str, waiting: _Waiting | None) -> None:
        """Replace what waits for one set, or (no uid) for a promise."""
        theirs = self._waiting.setdefault(model, {})
        for each, sign in ((theirs.pop(uid, None), -1), (waiting, 1)):
            if each is None or each.count < 1:
                continue
            lane = self._lanes.setdefault(each.lane, Counter())
            for name, amount in each.amounts:
                _add(lane, name, sign * each.count * amount)
            if not lane:
                del self._lanes[each.lane]
        if waiting is not None and waiting.count > 0:
            theirs[uid] = waiting
        if not theirs:
            del self._waiting[model]

    def _waiting_of_others(self, model: Key) -> Iterator[tuple[Lane, str, int]]:
        for lane, amounts in self._lanes.items():
            for name, amount in amounts.items():
                yield lane, name, amount
        for waiting in self._waiting.get(model, {}).values():
            for name, amount in waiting.amounts:
                yield waiting.lane, name, -waiting.count * amount

    def _may_meet(self, lane: Lane, selector: Mapping[str, str]) -> bool:
        """Whether any node has the labels of both."""
        if any(selector.get(label, value) != value for label, value in lane.selector):
            return False
        both = {**selector, **dict(lane.selector)}
        return both == selector or bool(self.matching(both))


class _View(Mapping[str, int]):
    """Totals by node less one model's own, and what waits by flavor; nothing is copied."""

    __slots__ = ("_all", "_own", "_waiting")

    def __init__(
        self, totals: Mapping[str, int], own: Mapping[str, int], waiting: Mapping[str, int]
    ) -> None:
        self._all, self._own, self._waiting = totals, own, waiting

    def __getitem__(self, name: str) -> int:
        if name in self._waiting:
            return self._waiting[name]
        return self._all[name] - self._own.get(name, 0)

    def __iter__(self) -> Iterator[str]:
        yield from self._waiting
        yield from (name for name in self._all if name not in self._waiting)

    def __len__(self) -> int:
        return len(self._waiting.keys() | self._all.keys())


class _Held(NamedTuple):
    """What a bound pod takes."""

    uid: str
    model: Key
    owner: str
    node: str
    amounts: Amounts


def _held(pod: Manifest | None) -> _Held | None:
    if pod is None or not pods.is_bound(pod) or pods.is_finished(pod):
        return None
    owner = controller_of(pod) or {}
    node = pod["spec"]["nodeName"]
    return _Held(
        uid_of(pod), _model_of(pod), str(owner.get("uid", "")), node, amounts_of(pod["spec"])
    )


def _set_of(stateful_set: Manifest) -> _Set:
    spec = stateful_set["spec"]
    pod = spec["template"]["spec"]
    selector = tuple(sorted((pod.get("nodeSelector") or {}).items()))
    lane = Lane(labels_of(stateful_set).get(names.LABEL_FLAVOR, ""), selector)
    return _Set(_model_of(stateful_set), lane, int(spec.get("replicas", 1)), amounts_of(pod))


def amounts_of(pod_spec: Manifest) -> Amounts:
    """Memory and extended resources that all containers request together."""
    total: Counter[str] = Counter()
    for container in pod_spec.get("containers") or ():
        resources = container.get("resources") or {}
        # Of extended resources, requests equal limits, and either may be left out.
        asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        requested = resources.get("requests") or {}
        for name, quantity in asked.items():
            if name == MEMORY and MEMORY not in requested:
                continue
            if name == MEMORY or "/" in name:
                try:
                    total[name] += parse_bytes(str(quantity))
                except ValueError:
                    continue  # Not ours to judge: the API server has accepted it.
    return tuple(sorted(total.items()))


def _model_of(manifest: Manifest) -> Key:
    return Key(key_of(manifest).namespace, labels_of(manifest).get(names.LABEL_MODEL, ""))


def _add(counter: Counter[str], name: str, amount: int) -> None:
    """Add, and forget what is nothing."""
    total = counter[name] + amount
    if total:
        counter[name] = total
    else:
        counter.pop(name, None)
