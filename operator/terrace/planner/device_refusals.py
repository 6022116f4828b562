"""What llama.cpp cannot run on a flavor's devices: always said, never replaced by the CPU.

Owns: refusals by the accelerator table. Does not own: the table (``accelerators.py``), which
devices are free (``device_rooms.py``). Pure. Next: ``rooms.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.api.conditions import Reason
from terrace.api.offload import KvTypes, Offload
from terrace.planner.accelerators import missing_weight_types, runs_kv
from terrace.planner.device_labels import matches
from terrace.planner.room import NoPlacement

if TYPE_CHECKING:
    from terrace.api.pool import Flavor
    from terrace.planner.accelerators import Accelerator, AcceleratorTable, Backend
    from terrace.planner.inputs import Cluster
    from terrace_runtime.contract import ModelFacts


def row_of(
    flavor: Flavor, offload: Offload, facts: ModelFacts, cluster: Cluster
) -> Accelerator | NoPlacement:
    """The flavor's row of the table, unless llama.cpp cannot run this model there."""
    table = cluster.accelerators
    row = table.accelerators.get(flavor.accelerator)
    if row is None:
        known = ", ".join(table.names)
        return _unsupported(
            flavor, f"the accelerator table has no {flavor.accelerator!r}; it has {known}"
        )
    if not row.backend:
        return _unsupported(flavor, row.reason)
    owner = _other_owner(flavor.resource_name or "", row, table)
    if owner:
        return _unsupported(
            flavor,
            f"{flavor.resource_name} is a resource of accelerator {owner}, not of {row.name}",
        )
    backend = table.backend_of(row)
    if row.is_standalone and not cluster.is_standalone:
        return _unsupported(flavor, f"{row.title} is for runtimes outside of Kubernetes alone")
    has_image = backend.image_suffix is not None and row.name not in table.without_image
    if not (has_image or flavor.runtime_image or row.is_standalone):
        where = f"set runtimeImage, or the chart's runtime.images.{row.backend}"
        return _unsupported(flavor, f"there is no image for {backend.title}: {where}")
    return _refuse_types(flavor, offload, facts, row, backend) or row


def _refuse_types(
    flavor: Flavor, offload: Offload, facts: ModelFacts, row: Accelerator, backend: Backend
) -> NoPlacement | None:
    kv = offload.kv_types or KvTypes()
    missing = missing_weight_types(backend, facts.weight_types)
    if missing:
        return NoPlacement(
            Reason.UNSUPPORTED_WEIGHT_TYPE,
            f"flavor {flavor.name}: llama.cpp's {backend.title} kernels on {row.title} do not run "
            f"weights of type {', '.join(missing)}, which this file has; convert it to one of "
            f"{', '.join(backend.weight_types)} alone, or choose another flavor",
        )
    if not runs_kv(backend, kv):
        pairs = ", ".join(backend.kv_types) + ("" if backend.kv_mixed else ", both the same")
        return NoPlacement(
            Reason.UNSUPPORTED_KV_TYPE,
            f"flavor {flavor.name}: llama.cpp's {backend.title} kernels on {row.title} do not run "
            f"offload.kvTypes key {kv.key} with value {kv.value}; they run {pairs}",
        )
    return None


def _other_owner(resource: str, row: Accelerator, table: AcceleratorTable) -> str:
    """The row that a resource's name belongs to, when it is not ``row``; empty: nobody knows."""
    if not resource or (row.resource_pattern and matches(row.resource_pattern, resource)):
        return ""
    owners = (
        each.name
        for each in table.accelerators.values()
        if each.resource_pattern and matches(each.resource_pattern, resource)
    )
    return next(owners, "")


def _unsupported(flavor: Flavor, why: str) -> NoPlacement:
    return NoPlacement(Reason.UNSUPPORTED_ACCELERATOR, f"flavor {flavor.name}: {why}")
