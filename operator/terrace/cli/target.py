"""Where ``terrace plan`` plans: a node in words, this machine, or a cluster and one of its pools.

Owns: the pool that stands for a node without one. Does not own: reading a cluster
(``snapshot.py``) or a machine (``machine.py``). Next: ``profiles.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from terrace.api.names import Key
from terrace.api.pool import PoolSpec
from terrace.cli.errors import InputError
from terrace.cli.machine import this_machine
from terrace.cli.profiles import Target
from terrace.cli.snapshot import Snapshot, parse_key
from terrace.controller.kinds import POOL
from terrace.controller.parse import InvalidSpecError, parse_spec
from terrace.planner.inputs import Cluster
from terrace.planner.nodes import NodeFacts, format_bytes

if TYPE_CHECKING:
    from terrace.cli.node_shape import NodeShape
    from terrace.cli.reader import ClusterReader

CORE = 1000
NO_MODEL = Key("", "")
DEFAULT_POOL = Key("default", "default")


def shape_target(shape: NodeShape, title: str, notes: tuple[str, ...] = ()) -> Target:
    """A node of that shape with nothing on it, and a pool with one flavor for it."""
    if shape.devices is not None:
        raise InputError("--node: gpu: devices cannot be planned yet")
    node = NodeFacts(
        name="node",
        labels={},
        taints=(),
        unschedulable=False,
        ready=True,
        cpu_millis=shape.cpu_millis,
        memory_bytes=shape.memory_bytes,
    )
    pool = PoolSpec.model_validate({"flavors": [_flavor(shape)]})
    words = f"{title}: {shape.cpu_millis / CORE:g} CPUs, {format_bytes(shape.memory_bytes)}"
    return Target(words, DEFAULT_POOL, pool, Cluster((node,)), notes)


def machine_target() -> Target:
    """This machine."""
    found = this_machine()
    return shape_target(found.shape, "this machine", found.notes)


def cluster_target(reader: ClusterReader, pool: str | None) -> Target:
    """The nodes of a cluster as they are now, with the flavors and settings of ``pool``."""
    seen = Snapshot(reader)
    key, spec = DEFAULT_POOL, None
    if pool is not None:
        key = parse_key(pool, reader.namespace, "--pool")
        hint = "see `kubectl get ipool -A`"
        stored = seen.required(POOL, key, hint)
        try:
            spec = parse_spec(PoolSpec, stored)
        except InvalidSpecError as error:
            raise InputError(f"--pool {key}: {error}") from error
    cluster = seen.planner_cluster(NO_MODEL)
    if not cluster.nodes:
        gaps = "; ".join(seen.gaps) or "it has none"
        raise InputError(f"no node of {reader.server} can be seen: {gaps}")
    if spec is None:
        spec = PoolSpec.model_validate({"flavors": [{"name": "cpu"}]})
    of_pool = f", pool {key}" if pool else ""
    notes = tuple(f"not counted, for lack of permission: {gap}" for gap in seen.gaps)
    title = f"cluster {reader.server}{of_pool}: {len(cluster.nodes)} nodes"
    return Target(title, key, spec, cluster, notes)


def _flavor(shape: NodeShape) -> dict[str, Any]:
    del shape
    return {"name": "cpu"}
