"""The story of an InferencePool: its flavors, its claim, its models.

Owns: the steps. Does not own: which node is of a flavor (``planner.candidates``). Pure. Next:
``explain_text.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.api import names
from terrace.api.conditions import ConditionType, Reason
from terrace.api.pool import PoolSpec
from terrace.cli.conditions import condition, is_seen
from terrace.cli.explain_placement import nearest_node
from terrace.cli.walk import State, Step, Story, first_command
from terrace.controller.kinds import is_deleting, key_of
from terrace.controller.model_volumes import DEFAULT_CACHE_SIZE
from terrace.controller.parse import InvalidSpecError, parse_spec
from terrace.planner.candidates import candidates, largest_free
from terrace.planner.nodes import format_bytes

if TYPE_CHECKING:
    from terrace.api.names import Key
    from terrace.api.pool import Flavor
    from terrace.controller.kinds import Manifest
    from terrace.planner.inputs import Cluster

MAX_MODELS = 20


@dataclass(frozen=True, slots=True)
class PoolScene:
    """What was read about one pool."""

    pool: Manifest
    cluster: Cluster
    models: tuple[Manifest, ...]
    claim: Manifest | None
    claim_events: tuple[str, ...] = ()
    gaps: tuple[str, ...] = ()


def explain_pool(scene: PoolScene) -> Story:
    """What the pool has, who uses it, and what is wrong with it."""
    key = key_of(scene.pool)
    ready = condition(scene.pool, ConditionType.READY)
    try:
        spec = parse_spec(PoolSpec, scene.pool)
    except InvalidSpecError as error:
        edit = f"kubectl edit ipool {key.name} -n {key.namespace}"
        steps: tuple[Step, ...] = (
            Step("spec", State.STUCK, str(error), Reason.INVALID_SPEC, command=edit),
        )
    else:
        flavors = [_flavor_step(scene, flavor) for flavor in spec.flavors]
        steps = (*flavors, _cache_step(scene, spec, key), _models_step(scene))
    is_ready = ready.is_true and is_seen(scene.pool) and not is_deleting(scene.pool)
    headline = "Ready" if is_ready else f"not Ready, {ready.reason or 'not seen by the operator'}"
    return Story(
        kind="ipool",
        namespace=key.namespace,
        name=key.name,
        is_ready=is_ready,
        headline=headline,
        steps=steps,
        gaps=scene.gaps,
        next_command=first_command(steps),
    )


def _flavor_step(scene: PoolScene, flavor: Flavor) -> Step:
    name = f"flavor {flavor.name}"
    nodes = scene.cluster.nodes
    if not nodes:
        return Step(name, State.UNKNOWN, "the nodes may not be read")
    theirs = candidates(flavor, nodes)
    if not theirs.nodes:
        nearest = nearest_node(flavor, nodes)
        details = (f"nearest: {nearest}",) if nearest else ()
        labels = " ".join(f"-L {key}" for key in sorted(flavor.node_selector))
        summary = f"no node is of it: {theirs.refused}"
        return Step(
            name, State.STUCK, summary, Reason.NO_NODE_FITS, details,
            f"kubectl get nodes {labels}".rstrip(),
        )  # fmt: skip
    free = largest_free(theirs.nodes, flavor.name, scene.cluster.used.memory)
    count = "1 node" if len(theirs.nodes) == 1 else f"{len(theirs.nodes)} nodes"
    words = f"{flavor.accelerator}, {count}; most free on {free.node}: {format_bytes(free.bytes)}"
    details = (f"not of it: {theirs.refused}",) if theirs.refused else ()
    return Step(name, State.DONE, words, details=details)


def _cache_step(scene: PoolScene, spec: PoolSpec, key: Key) -> Step:
    stalled = condition(scene.pool, ConditionType.STALLED)
    if spec.model_cache.is_per_replica:
        size = spec.model_cache.size or DEFAULT_CACHE_SIZE
        return Step("cache", State.DONE, f"each replica has a claim of its own, {size}")
    name = spec.model_cache.claim_name or names.model_cache_claim_name(key.name)
    describe = f"kubectl describe pvc {name} -n {key.namespace}"
    if stalled.is_true:
        return Step("cache", State.STUCK, stalled.message, stalled.reason, command=describe)
    if scene.claim is None:
        unread = any("PersistentVolumeClaim" in gap for gap in scene.gaps)
        state = State.UNKNOWN if unread else State.STUCK
        return Step("cache", state, f"claim {name} is not there", command=describe)
    phase = (scene.claim.get("status") or {}).get("phase", "Pending")
    if phase == "Bound":
        size = ((scene.claim.get("status") or {}).get("capacity") or {}).get("storage", "")
        return Step("cache", State.DONE, f"claim {name}, {size}".rstrip(", "))
    summary = f"claim {name} is {phase}: it is bound when the first pod mounts it, where its class "
    summary += "waits for that"
    state = State.STUCK if scene.claim_events or phase == "Lost" else State.WORKING
    return Step("cache", state, summary, details=scene.claim_events, command=describe)


def _models_step(scene: PoolScene) -> Step:
    lines = []
    not_ready = ""
    for model in sorted(scene.models, key=key_of):
        ready = condition(model, ConditionType.READY)
        flavor = ((model.get("status") or {}).get("placement") or {}).get("flavor", "")
        word = "Ready" if ready.is_true else f"not Ready, {ready.reason or 'not seen yet'}"
        lines.append(f"im/{model['metadata']['name']}{f' on {flavor}' if flavor else ''}: {word}")
        if not ready.is_true and not not_ready:
            key = key_of(model)
            not_ready = f"terrace explain im/{key.name} -n {key.namespace}"
    if len(lines) > MAX_MODELS:
        lines = [*lines[:MAX_MODELS], f"and {len(lines) - MAX_MODELS} more"]
    count = len(scene.models)
    good = sum(condition(model, ConditionType.READY).is_true for model in scene.models)
    summary = f"{good} of {count} Ready" if count else "none uses it"
    state = State.DONE if good == count else State.WORKING
    return Step("models", state, summary, details=tuple(lines), command=not_ready)
