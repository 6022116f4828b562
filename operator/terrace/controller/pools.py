"""One pool, once: its claim for model files and its status.

Owns: the order of the steps for a pool. Does not own: the models in it (``reconcile.py``): they
are queued by ``controller.py`` when the pool changes. Level-triggered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.api.conditions import Condition, ConditionType, Reason
from terrace.api.names import Key
from terrace.api.pool import Flavor, PoolSpec
from terrace.api.status import CachedFile, FlavorStatus, InferencePoolStatus
from terrace.controller.apply import ForeignObjectError, PredecessorError, carry_out
from terrace.controller.collect import Collection, clear, judge, prune
from terrace.controller.context import Context, Outcome
from terrace.controller.diff import diff
from terrace.controller.kinds import CLAIM, POOL, Manifest, is_deleting, uid_of
from terrace.controller.manifests import model_cache_claim
from terrace.controller.parse import InvalidSpecError, parse_spec
from terrace.controller.port import ForbiddenError, InvalidError, NotFoundError
from terrace.controller.reconcile import BLOCKED_RETRY_S, PREDECESSOR_RETRY_S
from terrace.controller.status import status_patch, with_times
from terrace.controller.unused import noted
from terrace.planner.accelerators import CPU
from terrace.planner.device_rooms import wanted_resources
from terrace.planner.nodes import format_bytes

if TYPE_CHECKING:
    from terrace.controller.inventory import Inventory
    from terrace.planner.accelerators import AcceleratorTable
    from terrace.planner.nodes import NodeFacts

T = ConditionType
_MILLIS = 1000


async def reconcile_pool(context: Context, key: Key) -> Outcome:
    """Make the pool's claim, clear its cache, say what the cluster has of each flavor."""
    pool = context.cache.get(POOL, key)
    if pool is None or is_deleting(pool):
        return Outcome()  # Owner references clean up.
    flavors: list[FlavorStatus] = []
    files = noted((pool.get("status") or {}).get("files"))
    found = Collection(files, [])
    problem: tuple[Reason, str] | None = None
    try:
        spec = parse_spec(PoolSpec, pool)
        flavors = flavor_statuses(spec, context.cache.inventory, context.accelerators)
        await _apply_claim(context, pool, spec)
        found = judge(context, pool, spec)
        await prune(context, pool, spec, found)
    except InvalidSpecError as error:
        problem = (Reason.INVALID_SPEC, str(error))
    except ForeignObjectError as error:
        problem = (Reason.FOREIGN_OBJECT, str(error))
    except PredecessorError as error:
        problem = (Reason.PREDECESSOR_REMAINS, str(error))
    except (InvalidError, ForbiddenError) as error:
        problem = (Reason.REFUSED, f"the API server refuses a child: {error}")
    await _report(context, pool, flavors, found.files, problem)
    await clear(context, found)
    if problem is not None and problem[0] == Reason.PREDECESSOR_REMAINS:
        return Outcome(PREDECESSOR_RETRY_S)
    return Outcome(BLOCKED_RETRY_S if problem else found.look_in_s)


def flavor_statuses(
    spec: PoolSpec, inventory: Inventory, table: AcceleratorTable
) -> list[FlavorStatus]:
    """Ready nodes of each flavor and what they have together."""
    return [_flavor_status(flavor, inventory, table) for flavor in spec.flavors]


def pool_conditions(
    flavors: list[FlavorStatus], problem: tuple[Reason, str] | None
) -> tuple[Condition, ...]:
    """Ready, Reconciling, Stalled."""
    calm = Condition(T.STALLED, False, Reason.NOT_STALLED)
    if problem is not None and problem[0] == Reason.PREDECESSOR_REMAINS:
        reason, message = problem
        working = Condition(T.RECONCILING, True, Reason.PROGRESSING, message)
        return Condition(T.READY, False, reason, message), working, calm
    if problem is not None:
        reason, message = problem
        return (
            Condition(T.READY, False, reason, message),
            Condition(T.RECONCILING, False, Reason.DONE),
            Condition(T.STALLED, True, reason, message),
        )
    if not any(flavor.nodes for flavor in flavors):
        message = "no ready node matches the nodeSelector of any flavor"
        return (
            Condition(T.READY, False, Reason.NO_NODE_FITS, message),
            Condition(T.RECONCILING, True, Reason.PROGRESSING, message),
            calm,
        )
    message = ", ".join(f"{flavor.name} has {flavor.nodes} ready nodes" for flavor in flavors)
    return (
        Condition(T.READY, True, Reason.READY, message),
        Condition(T.RECONCILING, False, Reason.DONE),
        calm,
    )


async def _apply_claim(context: Context, pool: Manifest, spec: PoolSpec) -> None:
    if spec.model_cache.claim_name is not None or spec.model_cache.is_per_replica:
        return
    live = {
        (kind, child["metadata"]["name"]): child
        for kind, child in context.cache.owned_by(uid_of(pool))
    }
    steps = diff([(CLAIM, model_cache_claim(pool, spec))], live)
    await carry_out(context.cluster, context.cache, uid_of(pool), steps)


async def _report(
    context: Context,
    pool: Manifest,
    flavors: list[FlavorStatus],
    files: list[CachedFile],
    problem: tuple[Reason, str] | None,
) -> None:
    before, now = pool.get("status") or {}, context.now()
    key = Key(pool["metadata"]["namespace"], pool["metadata"]["name"])
    generation = int(pool["metadata"].get("generation", 0))
    status = InferencePoolStatus(
        observed_generation=generation,
        conditions=with_times(pool_conditions(flavors, problem), before, generation, now),
        models=len(context.cache.priorities_in_pool(key)),
        flavors=flavors,
        files=files or None,
    ).model_dump(mode="json", by_alias=True, exclude_none=True)
    if status == before:
        return
    try:
        after = await context.cluster.apply_status(POOL, status_patch(POOL, pool, status))
    except NotFoundError:
        return  # Deleted meanwhile.
    context.cache.put(POOL, after)
    context.events.tell(POOL, after, pool, now)


def _flavor_status(flavor: Flavor, inventory: Inventory, table: AcceleratorTable) -> FlavorStatus:
    own = [node for node in inventory.matching(flavor.node_selector) if node.ready]
    return FlavorStatus(
        name=flavor.name,
        nodes=len(own),
        allocatable_cpu=f"{sum(node.cpu_millis for node in own) / _MILLIS:g}",
        allocatable_memory=format_bytes(sum(node.memory_bytes for node in own)),
        allocatable_devices=_devices(flavor, own, table),
    )


def _devices(flavor: Flavor, own: list[NodeFacts], table: AcceleratorTable) -> str | None:
    row = table.accelerators.get(flavor.accelerator)
    if row is None or row.name == CPU:
        return None
    if flavor.resource_claim_template_name is not None:
        return f"by ResourceClaimTemplate {flavor.resource_claim_template_name}"
    totals = {
        resource: sum(node.resources.get(resource, 0) for node in own)
        for resource in wanted_resources(flavor, row)
    }
    return ", ".join(f"{count} x {name}" for name, count in totals.items() if count) or "none"
