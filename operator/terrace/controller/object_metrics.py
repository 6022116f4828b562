"""Models, their replicas and their fetch Jobs as Prometheus families, as the cache last saw them.

Owns: what is told of each object, and the bounds on series. Does not own: the numbers of the
process and its queue (``metrics.py``). Kept up to date change by change, so that a scrape reads no
object; it runs in a thread of its own, so it copies each dict at once. No I/O. Conditions and
reasons are our own closed vocabulary; the one label that users choose is the model, and models
beyond MAX_MODELS count in the sums alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from terrace.api import names
from terrace.api.names import Key
from terrace.controller import pods
from terrace.controller.kinds import JOB, MODEL, POD, POOL, Manifest, labels_of
from terrace_runtime.contract import RUNTIME_CONTAINER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from terrace.controller.cache import Change

    Family = CounterMetricFamily | GaugeMetricFamily

MAX_MODELS: Final = 1000
"""Models with series of their own, the first that were seen."""
ENDINGS: Final = ("host-memory", "device-memory", "other")
"""Why a replica's container was started again."""
JOB_STATES: Final = ("active", "succeeded", "failed")
_CONDITION: Final = ["condition", "status", "reason"]

ConditionLabels = tuple[str, str, str]
"""Type, status, reason."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is told of one model."""

    conditions: tuple[ConditionLabels, ...]
    replicas: tuple[tuple[str, int], ...]
    planned: tuple[tuple[str, int], ...]
    download: tuple[tuple[str, int], ...]


class ObjectMetrics(Collector):
    """Told of every change by the controller, read at each scrape."""

    def __init__(self) -> None:
        self._models: dict[Key, _Seen] = {}
        self._pools: dict[Key, tuple[ConditionLabels, ...]] = {}
        self._jobs: dict[Key, str] = {}
        self._num_conditions: Counter[ConditionLabels] = Counter()
        self._restarts: dict[Key, Counter[str]] = {}

    def see(self, change: Change) -> None:
        """Take one object before and after."""
        if change.kind == MODEL:
            self._see_model(change.key, change.new)
        elif change.kind == POOL:
            self._pools.pop(change.key, None)
            if change.new is not None:
                self._pools[change.key] = _conditions(change.new)
        elif change.kind == JOB:
            self._jobs.pop(change.key, None)
            if change.new is not None:
                self._jobs[change.key] = _job_state(change.new)
        elif change.kind == POD and change.new is not None:
            self._see_pod(change.key.namespace, change.old, change.new)

    def collect(self) -> Iterator[Family]:
        """One scrape."""
        yield _sums("models", "Models by condition, its status and reason.", self._num_conditions)
        pools = Counter(each for conditions in [*self._pools.values()] for each in conditions)
        yield _sums("pools", "Pools by condition, its status and reason.", pools)
        jobs = GaugeMetricFamily(
            "terrace_operator_fetch_jobs",
            "Jobs that fetch or delete model files.",
            labels=["state"],
        )
        states = Counter([*self._jobs.values()])
        for state in JOB_STATES:
            jobs.add_metric([state], states[state])
        yield jobs
        yield from self._of_models()

    def describe(self) -> Iterable[Family]:
        """Nothing is read at registration."""
        return []

    def _see_model(self, key: Key, new: Manifest | None) -> None:
        before = self._models.get(key)
        if before is not None:
            self._num_conditions -= Counter(before.conditions)
        if new is None:
            self._models.pop(key, None)
            self._restarts.pop(key, None)
            return
        self._models[key] = seen = _seen(new)
        self._num_conditions.update(seen.conditions)

    def _see_pod(self, namespace: str, old: Manifest | None, new: Manifest) -> None:
        name = labels_of(new).get(names.LABEL_MODEL)
        if not name:
            return
        # At 0 before the first one: increase() sees no step in a series that begins at 1.
        restarts = self._restarts.setdefault(Key(namespace, name), Counter())
        more = pods.num_restarts(new, RUNTIME_CONTAINER)
        more -= pods.num_restarts(old, RUNTIME_CONTAINER) if old else more
        if more > 0:
            place = pods.memory_shortage(new, RUNTIME_CONTAINER)
            restarts[f"{place}-memory" if place else "other"] += more

    def _of_models(self) -> Iterator[Family]:
        conditions = _gauge(
            "model_condition", "1 for what each condition of a model says now.", *_CONDITION
        )
        replicas = _gauge("model_replicas", "Replicas: wanted, live, and ready of them.", "state")
        planned = _gauge(
            "model_planned_bytes", "Bytes of one replica by what they are for, as planned.", "kind"
        )
        download = _gauge(
            "model_download_bytes", "The running download's bytes: done and total.", "state"
        )
        restarts = CounterMetricFamily(
            "terrace_operator_replica_restarts",
            "Containers of replicas that were started again, by what had ended them.",
            labels=["model", "reason"],
        )
        restarted = dict(self._restarts)
        for key, seen in islice([*self._models.items()], MAX_MODELS):
            model = str(key)
            for condition in seen.conditions:
                conditions.add_metric([model, *condition], 1)
            for family, values in (
                (replicas, seen.replicas),
                (planned, seen.planned),
                (download, seen.download),
            ):
                for label, value in values:
                    family.add_metric([model, label], value)
            for ending in ENDINGS if key in restarted else ():
                restarts.add_metric([model, ending], restarted[key][ending])
        yield from (conditions, replicas, planned, download, restarts)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"terrace_operator_{name}", text, labels=["model", *labels])


def _sums(name: str, text: str, counts: Counter[ConditionLabels]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"terrace_operator_{name}", text, labels=_CONDITION)
    for labels, count in sorted([*counts.items()]):
        if count:
            family.add_metric(labels, count)
    return family


def _seen(model: Manifest) -> _Seen:
    spec, status = model.get("spec") or {}, model.get("status") or {}
    wanted = spec.get("replicas")
    replicas = {
        "wanted": 1 if wanted is None else wanted,
        "live": status.get("replicas"),
        "ready": status.get("readyReplicas"),
    }
    download = status.get("download") or {}
    amounts = {"done": download.get("doneBytes"), "total": download.get("totalBytes")}
    planned = (status.get("plan") or {}).get("bytes") or {}
    return _Seen(_conditions(model), _numbers(replicas), _numbers(planned), _numbers(amounts))


def _numbers(values: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    return tuple((label, value) for label, value in values.items() if isinstance(value, int))


def _conditions(manifest: Manifest) -> tuple[ConditionLabels, ...]:
    return tuple(
        (str(one.get("type")), str(one.get("status")), str(one.get("reason")))
        for one in (manifest.get("status") or {}).get("conditions") or ()
    )


def _job_state(job: Manifest) -> str:
    for condition in (job.get("status") or {}).get("conditions") or ():
        if condition.get("status") == "True" and condition.get("type") in ("Complete", "Failed"):
            return "succeeded" if condition["type"] == "Complete" else "failed"
    return "active"
