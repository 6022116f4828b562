"""Where ``terrace plan`` plans: a node in words, this machine, or a cluster and one of its pools.

Owns: the pool that stands for a node without one. Does not own: reading a cluster
(``snapshot.py``) or a machine (``machine.py``). Next: ``profiles.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from terrace.api.names import Key
from terrace.api.pool import PoolSpec
from terrace.cli.device_nodes import cluster_flavors, row_of, shape_flavor, shape_node
from terrace.cli.errors import InputError
from terrace.cli.installation import read_installation
from terrace.cli.machine import this_machine
from terrace.cli.model_file import Reading
from terrace.cli.profiles import Learned, Target
from terrace.cli.snapshot import Snapshot, parse_key
from terrace.controller.kinds import POOL
from terrace.controller.parse import InvalidSpecError, parse_spec
from terrace.planner.inputs import Cluster
from terrace.planner.nodes import format_bytes

if TYPE_CHECKING:
    from terrace.cli.node_shape import NodeShape
    from terrace.cli.reader import ClusterReader
    from terrace.planner.accelerators import AcceleratorTable

CORE = 1000
DEFAULT_POOL = Key("default", "default")


def shape_target(
    shape: NodeShape, title: str, table: AcceleratorTable, notes: tuple[str, ...] = ()
) -> Target:
    """A node of that shape with nothing on it, and a pool with one flavor for it."""
    node = shape_node(shape, table)
    try:
        pool = PoolSpec.model_validate({"flavors": [shape_flavor(shape)]})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"--node: gpu: {first['msg']}") from None
    is_standalone = shape.devices is not None and row_of(shape.devices, table).is_standalone
    cluster = Cluster((node,), accelerators=table, is_standalone=is_standalone)
    return Target(f"{title}: {_words(shape)}", DEFAULT_POOL, pool, cluster, notes)


def machine_target(table: AcceleratorTable) -> Target:
    """This machine."""
    found = this_machine()
    return shape_target(found.shape, "this machine", table, found.notes)


def cluster_target(
    reader: ClusterReader, pool: str | None, table: AcceleratorTable | None
) -> Target:
    """The nodes of a cluster as they are now, with the flavors and settings of ``pool``.

    ``table``: instead of the one that its operator uses.
    """
    seen = Snapshot(reader, reader.namespace)
    key, spec, stored = DEFAULT_POOL, None, None
    if pool is not None:
        key = parse_key(pool, reader.namespace, "--pool")
        stored = seen.required(POOL, key, "see `kubectl get ipool -A`")
        try:
            spec = parse_spec(PoolSpec, stored)
        except InvalidSpecError as error:
            raise InputError(f"--pool {key}: {error}") from error
    seen.read_usage()
    installed = read_installation(seen)
    nodes = seen.cache.inventory.nodes
    cluster = Cluster(nodes, seen.usage_for(stored), table or installed.table)
    if not nodes:
        gaps = "; ".join(seen.gaps) or "it has none"
        raise InputError(f"no node of {reader.server} can be seen: {gaps}")
    if spec is None:
        flavors = cluster_flavors(cluster.nodes, cluster.accelerators)
        spec = PoolSpec.model_validate({"flavors": flavors})
    of_pool = f", pool {key}" if pool else ""
    notes = tuple(f"not counted, for lack of permission: {gap}" for gap in seen.gaps)
    count = len(cluster.nodes)
    title = f"cluster {reader.server}{of_pool}: {count} node{'s' if count > 1 else ''}"
    is_stored = pool is not None
    return Target(title, key, spec, cluster, notes, is_stored, Learned(seen.cache, installed))


def reading_of(pool: PoolSpec, networks: tuple[str, ...], *, wants_digest: bool) -> Reading:
    """How the pool's fetch Jobs would reach sources; ``networks``: what the user allows too."""
    sources = pool.sources
    told = {
        "HF_ENDPOINT": sources.hugging_face_endpoint,
        "AWS_ENDPOINT_URL_S3": sources.s3_endpoint,
        "AWS_REGION": sources.s3_region,
    }
    environment = {name: value for name, value in told.items() if value is not None}
    return Reading((*pool.access.allowed_networks, *networks), environment, wants_digest)


def _words(shape: NodeShape) -> str:
    words = f"{shape.cpu_millis / CORE:g} CPUs, {format_bytes(shape.memory_bytes)}"
    devices = shape.devices
    if devices is None:
        return words
    parts = [devices.accelerator, devices.product]
    if devices.memory_bytes:
        parts.append(format_bytes(devices.memory_bytes))
    return f"{words}, {devices.count} x {' '.join(part for part in parts if part)}"
