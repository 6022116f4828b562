"""Rooms with devices: what tests plan for, without a cluster around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from support.planning import GIB, MIB, model, pool
from terrace.api.offload import overridden
from terrace.planner.devices import DeviceRoom
from terrace.planner.inputs import ModelInputs
from terrace.planner.placement import fit_rooms
from terrace.planner.planned import planned
from terrace.planner.room import NoPlacement, Room
from terrace.planner.shapes import Wish

if TYPE_CHECKING:
    from terrace.planner.plan import OffloadPlan
    from terrace_runtime.contract import ModelFacts

_NVIDIA: Final[dict[str, Any]] = {
    "accelerator": "nvidia",
    "backend": "cuda",
    "resource": "nvidia.com/gpu",
    "count": 1,
    "margin_bytes": 512 * MIB,
}
L4: Final = DeviceRoom(
    **_NVIDIA, product="NVIDIA-L4", memory_bytes=24 * GIB, bytes_per_second=300e9
)
TWO_L4: Final = DeviceRoom(
    **_NVIDIA | {"count": 2}, product="NVIDIA-L4", memory_bytes=24 * GIB, bytes_per_second=300e9
)
H100: Final = DeviceRoom(
    **_NVIDIA, product="NVIDIA-H100-80GB-HBM3", memory_bytes=80 * GIB, bytes_per_second=3350e9
)
MIG_8: Final = DeviceRoom(
    **_NVIDIA | {"resource": "nvidia.com/mig-1g.10gb"},
    product="NVIDIA-A100-SXM4-80GB-MIG-1g.10gb",
    memory_bytes=8 * GIB,
    bytes_per_second=250e9,
)
MI300X: Final = DeviceRoom(
    accelerator="amd",
    backend="rocm",
    product="AMD_Instinct_MI300X_OAM",
    resource="amd.com/gpu",
    count=1,
    memory_bytes=192 * GIB,
    margin_bytes=512 * MIB,
    bytes_per_second=5300e9,
)
MAC_64: Final = DeviceRoom(
    accelerator="metal",
    backend="metal",
    product="Apple M3 Max",
    resource="",
    count=1,
    memory_bytes=48 * GIB,
    margin_bytes=256 * MIB,
    bytes_per_second=400e9,
    is_unified=True,
)
ROOMS: Final[dict[str, DeviceRoom | None]] = {
    "cpu": None,
    "l4": L4,
    "h100": H100,
    "2xl4": TWO_L4,
    "mi300x": MI300X,
    "mig-8": MIG_8,
    "mac-64": MAC_64,
}


def room(device: DeviceRoom | None, *, host_bytes: int = 128 * GIB, threads: int = 15) -> Room:
    """A flavor's room of one node."""
    kind = device.accelerator if device else "cpu"
    flavor = pool({"name": "only", "accelerator": kind}).flavors[0]
    words = f"{host_bytes // GIB} GiB are free on node-a, the largest"
    return Room(flavor, host_bytes, words, 4000, threads, "the smallest node has 16 CPUs", device)


def wish(facts: ModelFacts, inputs: dict[str, Any] | None = None, **spec: Any) -> Wish:
    """What is to be placed; ``inputs`` are further fields of ModelInputs."""
    made = ModelInputs(facts, model(**spec), **(inputs or {}))
    return Wish(made, overridden(pool().offload, made.spec.offload))


def plan_in(
    facts: ModelFacts, where: Room, inputs: dict[str, Any] | None = None, **spec: Any
) -> OffloadPlan | NoPlacement:
    """The plan for one room."""
    wanted = wish(facts, inputs, **spec)
    fit = fit_rooms(wanted, [where])
    if isinstance(fit, NoPlacement):
        return fit
    return planned(wanted, fit, inputs="", skipped=())
