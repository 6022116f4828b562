"""``--node cpu=16,memory=64Gi,gpu=nvidia:2x24Gi``: a node that exists in words alone.

Owns: the words. Does not own: what an accelerator is (``planner/accelerators.py``). Pure. Next:
``target.py`` makes a pool of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from terrace.api.quantity import parse_bytes, parse_millis
from terrace.cli.errors import InputError

EXAMPLE = "cpu=16,memory=64Gi or cpu=32,memory=128Gi,gpu=nvidia:2x24Gi"
MAX_DEVICES = 16
_DEVICES = re.compile(
    r"(?P<accelerator>[a-z0-9]([a-z0-9-]*[a-z0-9])?):((?P<count>[0-9]+)x)?(?P<what>[^:]+)"
    r"(:(?P<memory>[^:]+))?"
)
_NAMED_SIZE = re.compile(r"(?<![0-9])([0-9]{1,4})GB(?![A-Za-z])")
"""Vendors count a product's memory in decimal gigabytes, which is never more than it has."""
_MEMORY = re.compile(r"[0-9.]+([KMGTPE]i?|k)?")


@dataclass(frozen=True, slots=True)
class Devices:
    """Like devices of one node: their memory is said, or known by their product's name."""

    accelerator: str
    count: int
    memory_bytes: int = 0
    """Of one device; 0: as the accelerator table says of ``product``."""
    product: str = ""


@dataclass(frozen=True, slots=True)
class NodeShape:
    """What one node can give to pods."""

    cpu_millis: int
    memory_bytes: int
    devices: Devices | None = None


def parse_shape(text: str) -> NodeShape:
    """The shape in ``text``. Raises InputError, which names the part that is wrong."""
    parts: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (each.strip() for each in part.partition("="))
        if not equals or not value:
            raise InputError(f"--node: {part.strip()!r} is not NAME=VALUE; write {EXAMPLE}")
        if name not in ("cpu", "memory", "gpu", "devices"):
            raise InputError(f"--node: {name!r} is none of cpu, memory and gpu; write {EXAMPLE}")
        name = "gpu" if name == "devices" else name
        if name in parts:
            raise InputError(f"--node: {name} is said twice")
        parts[name] = value
    for name in ("cpu", "memory"):
        if name not in parts:
            raise InputError(f"--node: {name} is missing; write {EXAMPLE}")
    return NodeShape(
        _quantity("cpu", parts["cpu"], is_cpu=True),
        _quantity("memory", parts["memory"], is_cpu=False),
        parse_devices(parts["gpu"]) if "gpu" in parts else None,
    )


def parse_devices(text: str) -> Devices:
    """``nvidia:2x24Gi``, ``nvidia:H100-80GB`` or ``nvidia:4xL4:24Gi``."""
    match = _DEVICES.fullmatch(text)
    if match is None:
        raise InputError(
            f"--node: gpu={text!r} is not ACCELERATOR:[COUNTx]MEMORY or "
            "ACCELERATOR:[COUNTx]PRODUCT[:MEMORY], such as nvidia:2x24Gi or nvidia:H100-80GB"
        )
    count = int(match["count"] or 1)
    if not 1 <= count <= MAX_DEVICES:
        raise InputError(f"--node: gpu={text!r}: a replica has 1 to {MAX_DEVICES} devices")
    what, accelerator = match["what"], match["accelerator"]
    if match["memory"] is not None:
        return Devices(accelerator, count, _quantity("gpu", match["memory"], is_cpu=False), what)
    if _MEMORY.fullmatch(what):
        return Devices(accelerator, count, _quantity("gpu", what, is_cpu=False))
    named = _NAMED_SIZE.search(what)
    memory = int(named[1]) * 10**9 if named else 0
    return Devices(accelerator, count, memory, what)


def _quantity(name: str, text: str, *, is_cpu: bool) -> int:
    try:
        value = parse_millis(text) if is_cpu else parse_bytes(text)
    except ValueError as error:
        raise InputError(f"--node: {name}: {error}") from None
    if value <= 0:
        raise InputError(f"--node: {name} must be above 0, not {text}")
    return value
