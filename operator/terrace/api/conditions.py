"""Condition types and reasons of both kinds: the whole vocabulary of ``status.conditions``.

Owns: the names and the shape of a condition. Does not own: when one is true
(``controller/status.py``). Pure. Ready, Reconciling and Stalled follow kstatus.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ConditionType(StrEnum):
    """One question each."""

    READY = "Ready"
    """Is everything as the spec wants it, so that the model can be called (or, with replicas: 0,
    is not meant to be)? The summary."""
    RECONCILING = "Reconciling"
    """Is the operator still working towards the spec? (True is not an error.)"""
    STALLED = "Stalled"
    """Is it stuck until a person changes something?"""
    MODEL_CACHED = "ModelCached"
    """Is the model file fetched, verified and inspected?"""
    PLACED = "Placed"
    """Is there a flavor and a plan that fit?"""
    AVAILABLE = "Available"
    """Does at least one replica answer?"""


class Reason(StrEnum):
    """CamelCase reasons; the message carries the numbers and the way out."""

    # Ready, Available
    READY = "Ready"
    REPLICAS_READY = "ReplicasReady"
    REPLICAS_STARTING = "ReplicasStarting"
    SCALED_TO_ZERO = "ScaledToZero"
    UNSCHEDULABLE = "Unschedulable"
    CRASHING = "Crashing"
    IMAGE_UNAVAILABLE = "ImageUnavailable"
    ROLLING_OUT = "RollingOut"
    DEGRADED = "Degraded"
    PREDECESSOR_REMAINS = "PredecessorRemains"
    # ModelCached: these and the reasons of contract.FetchFailure
    CACHED = "Cached"
    FETCHING = "Fetching"
    FETCH_PENDING = "FetchPending"
    # Placed
    PLACED = "Placed"
    POOL_NOT_FOUND = "PoolNotFound"
    NO_NODE_FITS = "NoNodeFits"
    CONTEXT_TOO_LONG = "ContextTooLong"
    UNSUPPORTED_KV_TYPE = "UnsupportedKvType"
    INVALID_PROJECTOR = "InvalidProjector"
    INVALID_OFFLOAD = "InvalidOffload"
    NO_DEVICE = "NoDevice"
    UNSUPPORTED_ACCELERATOR = "UnsupportedAccelerator"
    UNSUPPORTED_WEIGHT_TYPE = "UnsupportedWeightType"
    UNKNOWN_DEVICE_MEMORY = "UnknownDeviceMemory"
    PREEMPTED = "Preempted"
    WAITING_FOR_FACTS = "WaitingForFacts"
    # Stalled
    INVALID_SPEC = "InvalidSpec"
    NAME_CONFLICT = "NameConflict"
    FOREIGN_OBJECT = "ForeignObject"
    REFUSED = "Refused"
    NOT_STALLED = "NotStalled"
    # Reconciling
    PROGRESSING = "Progressing"
    DONE = "Done"


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition without its times; ``status.py`` keeps lastTransitionTime over equal status."""

    type: ConditionType
    status: bool | None
    """None is Unknown."""
    reason: str
    message: str = ""
