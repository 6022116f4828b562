"""What the gateway knows of the cluster: models by name and their ready endpoints.

Owns: the projection of raw InferenceModels and Pods, and the indexes over it. Does not own: how
objects arrive (``watcher.py``) or which endpoint is taken (``routing.py``). Pure.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from terrace.api import names
from terrace.api.names import Key
from terrace_runtime import contract

Raw = Mapping[str, Any]
MAX_MESSAGE_CHARS = 1024


@dataclass(frozen=True, slots=True)
class Model:
    """An InferenceModel as far as the gateway reads it."""

    key: Key
    served_names: tuple[str, ...] = ()
    """The names it won (``status.servedNames``); ``namespace/name`` works beside them."""
    created: int = 0
    """Seconds since the epoch."""
    message: str = ""
    """Message of its Ready condition while that is not True: what a client is told."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a ready replica. A pod that comes back under its name is another endpoint."""

    pod: Key
    uid: str
    model: Key
    url: str
    """``http://IP:PORT``, no trailing slash."""


class Registry:
    """Models and endpoints, updated object by object; every lookup is a dictionary's."""

    def __init__(self) -> None:
        self._models: dict[Key, Model] = {}
        self._claimants: dict[str, set[Key]] = {}
        self._endpoints: dict[Key, dict[Key, Endpoint]] = {}
        self._pods: dict[Key, Key] = {}

    # Models -----------------------------------------------------------------------------------
    def apply_model(self, raw: Raw) -> None:
        """Add or replace one InferenceModel."""
        model = parse_model(raw)
        if self._models.get(model.key) == model:
            return
        self._forget_model(model.key)
        self._models[model.key] = model
        for name in model.served_names:
            self._claimants.setdefault(name, set()).add(model.key)

    def remove_model(self, raw: Raw) -> None:
        """Drop one InferenceModel; one that is not known is fine."""
        self._forget_model(_key(raw))

    def replace_models(self, raws: Iterable[Raw], namespace: str | None) -> None:
        """Make ``namespace`` (None: all) hold exactly these: a list after a gap in the watch."""
        listed = list(raws)
        kept = {_key(raw) for raw in listed}
        for key in [k for k in self._models if _in(k, namespace) and k not in kept]:
            self._forget_model(key)
        for raw in listed:
            self.apply_model(raw)

    def _forget_model(self, key: Key) -> None:
        model = self._models.pop(key, None)
        for name in model.served_names if model else ():
            claimants = self._claimants[name]
            claimants.discard(key)
            if not claimants:
                del self._claimants[name]

    # Pods -------------------------------------------------------------------------------------
    def apply_pod(self, raw: Raw) -> None:
        """Add, replace or (when it is no longer ready) drop the endpoint of one pod."""
        pod = _key(raw)
        endpoint = parse_endpoint(raw)
        if self._pods.get(pod) != (endpoint.model if endpoint else None):
            self._forget_pod(pod)
        if endpoint is not None:
            self._pods[pod] = endpoint.model
            self._endpoints.setdefault(endpoint.model, {})[pod] = endpoint

    def remove_pod(self, raw: Raw) -> None:
        """Drop the endpoint of one pod; one that is not known is fine."""
        self._forget_pod(_key(raw))

    def replace_pods(self, raws: Iterable[Raw], namespace: str | None) -> None:
        """Make ``namespace`` (None: all) hold exactly these."""
        listed = list(raws)
        kept = {_key(raw) for raw in listed}
        for pod in [p for p in self._pods if _in(p, namespace) and p not in kept]:
            self._forget_pod(pod)
        for raw in listed:
            self.apply_pod(raw)

    def _forget_pod(self, pod: Key) -> None:
        model = self._pods.pop(pod, None)
        if model is not None:
            endpoints = self._endpoints[model]
            del endpoints[pod]
            if not endpoints:
                del self._endpoints[model]

    # Questions --------------------------------------------------------------------------------
    def resolve(self, name: str) -> Model | None:
        """The model that ``name`` means: ``namespace/name`` first, else a served name.

        While two models hold one name (the operator has not settled it yet) the older wins, as it
        will for the operator.
        """
        namespace, slash, rest = name.partition("/")
        if slash and (model := self._models.get(Key(namespace, rest))) is not None:
            return model
        claimants = self._claimants.get(name)
        if not claimants:
            return None
        return min((self._models[key] for key in claimants), key=lambda m: (m.created, m.key))

    def endpoints(self, model: Key) -> tuple[Endpoint, ...]:
        """Ready replicas of a model."""
        return tuple(self._endpoints.get(model, {}).values())

    def models(self) -> list[Model]:
        """All models, ready or cold, by namespace and name."""
        return sorted(self._models.values(), key=lambda model: model.key)

    def knows(self, model: Key) -> bool:
        """Does this InferenceModel exist?"""
        return model in self._models

    def some_names(self, count: int) -> list[str]:
        """A few names that work, for the message about one that does not."""
        return heapq.nsmallest(count, self._claimants) or [
            str(key) for key in heapq.nsmallest(count, self._models)
        ]


def parse_model(raw: Raw) -> Model:
    """Project a raw InferenceModel; what is missing or malformed counts as absent."""
    status = raw.get("status") or {}
    served = status.get("servedNames") or []
    conditions = status.get("conditions") or []
    # A model that is meant to have no replica is Ready, and not Available.
    unready: Raw = next(
        (
            c
            for kind in ("Ready", "Available")
            for c in conditions
            if c.get("type") == kind and c.get("status") != "True"
        ),
        {},
    )
    return Model(
        key=_key(raw),
        served_names=tuple(name for name in served if isinstance(name, str)),
        created=_epoch_s(raw["metadata"].get("creationTimestamp")),
        message=str(unready.get("message") or "")[:MAX_MESSAGE_CHARS],
    )


def parse_endpoint(raw: Raw) -> Endpoint | None:
    """The endpoint of a raw Pod: ready, not on its way out, with an address and our port."""
    metadata, status = raw["metadata"], raw.get("status") or {}
    model = (metadata.get("labels") or {}).get(names.LABEL_MODEL)
    ready = any(
        c.get("type") == "Ready" and c.get("status") == "True"
        for c in status.get("conditions") or []
    )
    address, port = status.get("podIP"), _http_port(raw)
    if not model or not ready or metadata.get("deletionTimestamp") or not address or not port:
        return None
    host = f"[{address}]" if ":" in address else address
    namespace = metadata["namespace"]
    return Endpoint(
        pod=_key(raw),
        uid=metadata.get("uid", ""),
        model=Key(namespace, model),
        url=f"http://{host}:{port}",
    )


def _http_port(raw: Raw) -> int | None:
    for container in (raw.get("spec") or {}).get("containers") or []:
        for port in container.get("ports") or []:
            if port.get("name") == contract.RUNTIME_PORT_NAME:
                return int(port["containerPort"])
    return None


def _key(raw: Raw) -> Key:
    return Key(raw["metadata"]["namespace"], raw["metadata"]["name"])


def _in(key: Key, namespace: str | None) -> bool:
    return namespace is None or key.namespace == namespace


def _epoch_s(timestamp: str | None) -> int:
    try:
        return int(datetime.fromisoformat(timestamp or "").timestamp())
    except ValueError:
        return 0
