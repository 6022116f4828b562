"""The story of an InferenceModel: every step of its walk, in order.

Owns: the order, the headline, names and gateway. Does not own: the other steps
(``explain_file.py``, ``explain_placement.py``, ``explain_replicas.py``). Pure. Next:
``explain_text.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.api.conditions import ConditionType, Reason
from terrace.api.names import Key
from terrace.cli.advice import About, command_for, plan_options
from terrace.cli.conditions import condition, is_seen
from terrace.cli.explain_file import facts_step, file_step
from terrace.cli.explain_placement import placement_step, plan_notes, plan_of, plan_step
from terrace.cli.explain_replicas import children_step, replicas_step
from terrace.cli.walk import Scene, State, Step, Story, first_command
from terrace.controller import pods
from terrace.controller.cache import claimed_names
from terrace.controller.kinds import is_deleting, key_of
from terrace.controller.observe import pool_name

if TYPE_CHECKING:
    from terrace.controller.kinds import Manifest

OPERATOR_PODS = "kubectl get pods -A -l app.kubernetes.io/name=terrace"


def explain_model(scene: Scene) -> Story:
    """Where the model stands, why, and what to type next."""
    model = scene.seen.model
    key = key_of(model)
    spec = model.get("spec") or {}
    source = spec.get("source")
    uri = str(source.get("uri", "")) if isinstance(source, dict) else ""
    about = About(key.namespace, key.name, pool_name(model), uri, plan_options(spec))
    plan = plan_of(scene)
    steps = (
        *_operator_steps(scene),
        *_spec_steps(scene, about),
        file_step(scene, about),
        facts_step(scene),
        placement_step(scene, about),
        plan_step(scene),
        children_step(scene, about, is_planned=plan is not None),
        replicas_step(scene, about, is_planned=plan is not None),
        _names_step(scene, about),
        _gateway_step(scene),
    )
    ready = condition(model, ConditionType.READY)
    is_ready = ready.is_true and is_seen(model) and not is_deleting(model)
    notes = tuple(plan_notes(scene))
    command = first_command(steps)
    if is_ready and plan is not None and plan.pending is not None and not command:
        command = about.take_pending(plan.pending.digest)
    return Story(
        kind="im",
        namespace=key.namespace,
        name=key.name,
        is_ready=is_ready,
        headline=_headline(scene, is_ready=is_ready),
        steps=steps,
        plan_digest=plan.digest if plan else "",
        plan_reasons=tuple(plan.reasons) if plan else (),
        plan_notes=notes,
        gaps=scene.gaps,
        next_command=command,
    )


def _headline(scene: Scene, *, is_ready: bool) -> str:
    model = scene.seen.model
    ready = condition(model, ConditionType.READY)
    if is_deleting(model):
        return "is being deleted; what it owns goes with it"
    if not ready.status:
        return "not seen by the operator yet"
    if not is_seen(model):
        return f"changed since the operator last looked; it was {_words(ready.reason)} then"
    if is_ready:
        return "Ready" if ready.reason == Reason.READY else f"Ready, {ready.reason}"
    return f"not Ready, {ready.reason}"


def _words(reason: str) -> str:
    return "Ready" if reason == Reason.READY else f"not Ready ({reason})"


def _operator_steps(scene: Scene) -> tuple[Step, ...]:
    """Only where the operator has not seen the object as it is now, or is known to be down."""
    model = scene.seen.model
    if is_seen(model):
        # None at all: it may run elsewhere, and its status is fresh.
        if not scene.operators or any(pods.is_ready(pod) for pod in scene.operators):
            return ()
        summary = "no operator pod is ready: the status below may be old, and nothing goes on"
        return (Step("operator", State.STUCK, summary, command=OPERATOR_PODS),)
    generation = model["metadata"].get("generation", 0)
    seen = (model.get("status") or {}).get("observedGeneration", -1)
    about = f"of generation {seen}" if isinstance(seen, int) and seen >= 0 else "not written yet"
    summary = f"the spec is of generation {generation}, the status is {about}"
    if scene.operators is None:
        return (Step("operator", State.UNKNOWN, summary, command=OPERATOR_PODS),)
    running = [pod for pod in scene.operators if pods.is_ready(pod)]
    if running:
        count = f"{len(running)} of {len(scene.operators)} operator pods ready"
        return (Step("operator", State.WORKING, f"{summary}; {count}"),)
    what = "no operator pod is ready" if scene.operators else "no operator is installed"
    return (Step("operator", State.STUCK, f"{summary}; {what}", command=OPERATOR_PODS),)


def _spec_steps(scene: Scene, about: About) -> tuple[Step, ...]:
    """Only where the spec itself, or its pool's, cannot be used."""
    stalled = condition(scene.seen.model, ConditionType.STALLED)
    if not stalled.is_true or stalled.reason != Reason.INVALID_SPEC:
        return ()
    of_pool = stalled.message.startswith("InferencePool")
    command = about.edit_pool if of_pool else command_for(stalled.reason, about)
    return (Step("spec", State.STUCK, stalled.message, stalled.reason, command=command),)


def _names_step(scene: Scene, about: About) -> Step:
    model = scene.seen.model
    served = [str(name) for name in (model.get("status") or {}).get("servedNames") or ()]
    stalled = condition(model, ConditionType.STALLED)
    always = str(Key(about.namespace, about.name))
    words = ", ".join([*served, always]) if served else always
    if stalled.is_true and stalled.reason == Reason.NAME_CONFLICT:
        return Step(
            "names", State.STUCK, stalled.message, stalled.reason, (f"served: {words}",), about.edit
        )
    if not served:
        wanted = ", ".join(claimed_names(model))
        return Step("names", State.WAITING, f"{wanted}: not claimed yet")
    return Step("names", State.DONE, words)


def _gateway_step(scene: Scene) -> Step:
    model = scene.seen.model
    url = str((model.get("status") or {}).get("url") or "")
    served = (model.get("status") or {}).get("servedNames") or [model["metadata"]["name"]]
    answering = any(pods.is_ready(pod) for pod in scene.seen.replicas)
    where = f"{url}, model {served[0]!r}" if url else "no address is configured"
    if scene.gateways is None:
        state = State.DONE if answering else State.WAITING
        return Step("gateway", state, f"{where} (its pods may not be read)")
    ready = sum(pods.is_ready(pod) for pod in scene.gateways)
    if not ready:
        what = "no gateway pod is ready" if scene.gateways else "no gateway is installed"
        return Step("gateway", State.STUCK, what, command=_gateway_command(scene.gateways))
    count = "1 gateway pod" if ready == 1 else f"{ready} gateway pods"
    if not answering:
        return Step("gateway", State.WAITING, f"{count} ready, no replica to send requests to")
    return Step("gateway", State.DONE, f"{where}; {count} ready")


def _gateway_command(gateways: tuple[Manifest, ...]) -> str:
    if not gateways:
        return f"{OPERATOR_PODS},app.kubernetes.io/component=gateway"
    key = key_of(gateways[0])
    return f"kubectl describe pod {key.name} -n {key.namespace}"
