"""The devices that one replica may use, as values.

Owns: DeviceRoom. Does not own: where it comes from (``device_rooms.py``) or what goes there
(``split.py``). Pure. Next: ``split.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

NodeLabels = tuple[tuple[str, tuple[str, ...]], ...]
"""Label -> values, of which a node must have one; all labels must hold."""


@dataclass(frozen=True, slots=True)
class DeviceRoom:
    """``count`` like devices for one replica."""

    accelerator: str
    """Name of the row of the accelerator table."""
    backend: str
    """llama.cpp's backend: ``cuda``, ``rocm``, ``vulkan`` ..."""
    product: str
    """As the node's label says; empty where there is none."""
    resource: str
    """Extended resource that is requested; empty with ``claim_template``."""
    count: int
    memory_bytes: int
    """Of one device or, shared, of one share of it."""
    margin_bytes: int
    """Kept free on each device for its driver and context, as the table says."""
    bytes_per_second: float
    """How fast one device reads its memory: decides what is fastest, never what fits."""
    shares: int = 1
    is_alone: bool = False
    """No replica can have several of them."""
    claim_template: str = ""
    is_unified: bool = False
    """The device's memory is the host's: what lies there counts once, against both."""
    max_parallel: int | None = None
    """Most sequences at a time that its kernels take; None: any number."""
    node_labels: NodeLabels = ()
    """Labels of the nodes that these numbers hold for; goes into the plan."""
    preferred_nodes: tuple[str, ...] = ()
    """Nodes that leave least unused, the best first; goes into the plan, not into its digest."""
    reasons: tuple[str, ...] = ()
    """Why it is so much memory, and what sharing means; goes into the plan's reasons."""
