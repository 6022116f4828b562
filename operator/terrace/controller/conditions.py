"""The six conditions of a model, out of findings.

Owns: which condition is true when, its reason, and a message with the way out. Does not own: times
and writing (``status.py``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.api.conditions import Condition, ConditionType, Reason
from terrace.controller import pods
from terrace.controller.placing import Decision
from terrace.planner.nodes import format_bytes
from terrace.planner.rooms import NoPlacement
from terrace_runtime.contract import RUNTIME_CONTAINER

if TYPE_CHECKING:
    from terrace.controller.facts import AnyFetch
    from terrace.controller.findings import Findings
    from terrace_runtime.contract import FetchFailure

T = ConditionType
_FINAL_REFUSALS = {
    Reason.CONTEXT_TOO_LONG,
    Reason.INVALID_OFFLOAD,
    Reason.INVALID_PROJECTOR,
    Reason.NO_DEVICE,
    Reason.UNSUPPORTED_ACCELERATOR,
    Reason.UNSUPPORTED_KV_TYPE,
    Reason.UNSUPPORTED_WEIGHT_TYPE,
}
"""No node that joins can help."""
_PERMANENT_HINT = "mend the source, then delete the fetch Job to try again"
_EXTRA_HINT = "mend its source in the spec, or delete its fetch Job to try again"


def model_conditions(found: Findings) -> tuple[Condition, ...]:
    """Ready, Reconciling, Stalled, ModelCached, Placed, Available: always all six."""
    cached, placed, available = _cached(found), _placed(found), _available(found)
    stalled = _stalled(found)
    ready = _ready(found, stalled, cached, placed, available)
    is_done = ready.status is True and not found.is_rolling and not found.has_surplus
    if stalled.status is True or is_done:
        reconciling = Condition(T.RECONCILING, False, Reason.DONE)
    else:
        reconciling = Condition(T.RECONCILING, True, Reason.PROGRESSING, ready.message)
    return ready, reconciling, stalled, cached, placed, available


def _cached(found: Findings) -> Condition:
    kind = T.MODEL_CACHED
    for title, fetch in found.fetches:
        if fetch.failure is not None:
            return Condition(kind, False, fetch.failure.reason, _failure(title, fetch.failure))
    missing = [(title, fetch) for title, fetch in found.fetches if fetch.known is None]
    if found.fetch.known is not None and not missing:
        facts = found.fetch.known.facts
        message = f"{format_bytes(facts.file_bytes)}, sha256 {facts.digest[:12]}"
        extras = [title for title, _ in found.fetches if title]
        return Condition(kind, True, Reason.CACHED, "; with ".join([message, *_listed(extras)]))
    if found.invalid_spec or found.missing_pool or found.pool_problem:
        return Condition(kind, None, Reason.FETCH_PENDING, "waits for the spec and the pool")
    is_fetching = any(fetch.running_pod is not None for _, fetch in missing)
    reason = Reason.FETCHING if is_fetching else Reason.FETCH_PENDING
    return Condition(kind, False, reason, "; ".join(_stage(found, *each) for each in missing))


def _failure(title: str, failure: FetchFailure) -> str:
    hint = "it is tried again"
    if failure.permanent:
        hint = _EXTRA_HINT if title else _PERMANENT_HINT
    return f"{f'{title}: ' if title else ''}{failure.message}; {hint}"


def _stage(found: Findings, title: str, fetch: AnyFetch) -> str:
    """What fetching one file is at."""
    if fetch.running_pod is None:
        waiting = fetch.waiting or "the fetch Job has not started yet"
        return f"{title}: {waiting}" if title else waiting
    words = f"the fetch Job reads {title or 'the model file'}"
    is_shown = found.download is not None and found.download[0] == title
    if is_shown and found.progress is not None and found.progress.is_stalled:
        words += (
            f", which has stood still for {found.progress.still_s:.0f} seconds: can its source be "
            "reached?"
        )
    return words


def _listed(titles: list[str]) -> list[str]:
    return [", ".join(titles)] if titles else []


def _placed(found: Findings) -> Condition:
    if found.missing_pool:
        message = f"InferencePool {found.missing_pool!r} is not in this namespace: create it"
        if found.ready:
            message += "; replicas that run keep running"
        return Condition(T.PLACED, False, Reason.POOL_NOT_FOUND, message)
    if isinstance(found.decision, NoPlacement):
        return Condition(T.PLACED, False, found.decision.reason, found.decision.message)
    if isinstance(found.decision, Decision):
        plan = found.decision.plan
        message = (
            f"flavor {plan.flavor}: {plan.parallel} x {plan.context_tokens:,} tokens in "
            f"{format_bytes(plan.memory_limit_bytes)}"
        )
        return Condition(T.PLACED, True, Reason.PLACED, message)
    if found.invalid_spec or found.pool_problem:
        message = found.invalid_spec or found.pool_problem
        return Condition(T.PLACED, None, Reason.INVALID_SPEC, message)
    message = "a plan needs the facts of all files of the model"
    return Condition(T.PLACED, False, Reason.WAITING_FOR_FACTS, message)


def _available(found: Findings) -> Condition:
    ready = len(found.ready)
    count = f"{ready} of {found.wanted_replicas} replicas ready"
    if ready:
        return Condition(T.AVAILABLE, True, Reason.REPLICAS_READY, count)
    if found.wanted_replicas == 0:
        return Condition(T.AVAILABLE, False, Reason.SCALED_TO_ZERO, "spec.replicas is 0")
    if isinstance(found.decision, Decision) and found.decision.given_up is not None:
        return Condition(T.AVAILABLE, False, Reason.DEGRADED, count)
    reason, message = _trouble(found)
    return Condition(T.AVAILABLE, False, reason, f"{count}; {message}" if message else count)


MAX_NAMED = 3


def _trouble(found: Findings) -> tuple[Reason, str]:
    """Why replicas are not ready: the worst problem of any of them."""
    for pod in found.live:
        if image := pods.image_problem(pod, RUNTIME_CONTAINER):
            return Reason.IMAGE_UNAVAILABLE, f"{pod['metadata']['name']}: {image}"
    for pod in found.live:
        if crash := pods.crash(pod, RUNTIME_CONTAINER):
            return Reason.CRASHING, f"{pod['metadata']['name']} ended with {crash}"
    for pod in found.live:
        if crash := pods.fetch_crash(pod):
            return Reason.CRASHING, f"{pod['metadata']['name']} cannot fetch its files: {crash}"
    for pod in found.live:
        if (why := pods.unschedulable(pod)) is not None:
            return Reason.UNSCHEDULABLE, f"{pod['metadata']['name']}: {why}"
    fetching = [pod["metadata"]["name"] for pod in found.live if pods.is_fetching(pod)]
    if fetching:
        return Reason.FETCHING, f"{', '.join(fetching[:MAX_NAMED])} fetch their files"
    return Reason.REPLICAS_STARTING, ""


def _ready(
    found: Findings, stalled: Condition, cached: Condition, placed: Condition, available: Condition
) -> Condition:
    if stalled.status is True and stalled.reason != Reason.NAME_CONFLICT:
        return Condition(T.READY, False, stalled.reason, stalled.message)
    if found.predecessor:
        return Condition(T.READY, False, Reason.PREDECESSOR_REMAINS, found.predecessor)
    for need in (placed, cached) if placed.reason == Reason.POOL_NOT_FOUND else (cached, placed):
        if need.status is not True:
            return Condition(T.READY, False, need.reason, need.message)
    return _complete(found, available)


def _complete(found: Findings, available: Condition) -> Condition:
    """Ready, once nothing is in the way of the replicas."""
    if available.reason == Reason.SCALED_TO_ZERO:
        # As the spec has it: whoever waits for Ready (Flux, Helm) would wait for ever.
        return Condition(T.READY, True, Reason.SCALED_TO_ZERO, available.message)
    if available.status is not True:
        return Condition(T.READY, False, available.reason, available.message)
    if found.is_rolling:
        message = f"{len(found.current)} of {found.wanted_replicas} replicas have the new plan"
        return Condition(T.READY, False, Reason.ROLLING_OUT, message)
    if len(found.ready) < found.wanted_replicas:
        reason, message = _trouble(found)
        said = f"{available.message}; {message}" if message else available.message
        return Condition(T.READY, False, reason, said)
    return Condition(T.READY, True, Reason.READY, available.message)


def _stalled(found: Findings) -> Condition:
    problem = found.invalid_spec or found.pool_problem
    refusal = found.decision
    if problem:
        why: tuple[str, str] = (Reason.INVALID_SPEC, problem)
    elif found.refused:
        why = (Reason.REFUSED, f"the API server refuses a child: {found.refused}")
    elif found.foreign:
        why = (Reason.FOREIGN_OBJECT, found.foreign)
    elif any(fetch.failure and fetch.failure.permanent for _, fetch in found.fetches):
        cached = _cached(found)
        why = (cached.reason, cached.message)
    elif isinstance(refusal, Decision) and refusal.given_up is not None:
        why = (Reason.DEGRADED, refusal.given_up_words)
    elif isinstance(refusal, NoPlacement) and refusal.reason in _FINAL_REFUSALS:
        why = (refusal.reason, refusal.message)
    elif found.claims.lost:
        taken = ", ".join(f"{name!r} is served by {winner}" for name, winner in found.claims.lost)
        message = (
            f"{taken}: choose another of spec.servedNames or spec.adapters; namespace/name works"
        )
        why = (Reason.NAME_CONFLICT, message)
    else:
        return Condition(T.STALLED, False, Reason.NOT_STALLED)
    return Condition(T.STALLED, True, *why)
