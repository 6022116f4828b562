"""What labels and resources of a node say about its devices.

Owns: parsing product, memory and replicas by the rows of the accelerator table. Does not own: the
table (``accelerators.py``), classes of nodes (``device_classes.py``). Pure: whatever does not parse
counts as unknown, never raises. Next: ``device_classes.py``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from terrace.api.quantity import parse_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from terrace.planner.accelerators import Accelerator, MemorySource, Unit
    from terrace.planner.nodes import NodeFacts

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*(?:([KMGT])(i?))?B?")
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}
_UNITS: dict[Unit, int] = {"B": 1, "MiB": 1 << 20, "GB": 10**9, "GiB": 1 << 30}
MAX_REPLICAS = 1024


@dataclass(frozen=True, slots=True)
class NodeDevices:
    """The devices of one node behind one extended resource."""

    allocatable: int
    """Whole devices or, shared, clients."""
    product: str
    product_label: str
    memory_bytes: int | None
    """Of one device; None: nobody says."""
    memory_words: str
    replicas: int
    """Clients that one device has."""
    sizing_labels: tuple[str, ...]
    """Labels that memory and replicas were read from."""


def read_devices(row: Accelerator, resource: str, node: NodeFacts) -> NodeDevices:
    """What ``node`` says about the devices behind ``resource``; read once per node."""
    key = (row.name, resource)
    known: tuple[Accelerator, NodeDevices] | None = node.memo.get(key)
    # Another table may have another row of that name.
    if known is None or known[0] is not row:
        known = node.memo[key] = (row, _read(row, resource, node))
    return known[1]


def _read(row: Accelerator, resource: str, node: NodeFacts) -> NodeDevices:
    labels, product, product_label, used = node.labels, "", "", []
    for template in row.product:
        key = template.replace("{resource}", resource)
        if labels.get(key):
            product, product_label = labels[key], key
            break
    memory, words = None, ""
    for source in row.memory:
        memory, key = _memory(source, resource, product, labels)
        if memory:
            used += [key] if key in labels else []
            words = f"label {key}" if key in labels else key
            break
    allocatable = node.resources.get(resource, 0)
    replicas, replicas_label = _replicas(row, resource, allocatable, labels)
    used += [replicas_label] if replicas_label else []
    return NodeDevices(
        allocatable, product, product_label, memory or None, words, replicas, tuple(used)
    )


@lru_cache(maxsize=4096)
def parse_size(text: str, unit: Unit) -> int | None:
    """Bytes of a label's value such as ``81920``, ``191G`` or ``64GB``; None when it is none.

    ``unit`` is what a number without a letter counts, and whether a G is 1000 or 1024 cubed.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    number, letter, binary = match.groups()
    if letter is None:
        return int(float(number) * _UNITS[unit])
    base = 1024 if binary or unit.endswith("iB") else 1000
    return int(float(number) * base ** _POWERS[letter])


@lru_cache(maxsize=4096)
def _found(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


def matches(pattern: str, resource: str) -> bool:
    """Whether ``resource`` is one of those that the pattern describes as a whole."""
    return _found(f"^(?:{pattern})$", resource)


def is_one_per_process(row: Accelerator, resource: str, product: str) -> bool:
    """Whether a process can use one such device alone."""
    pattern = row.one_per_process
    return bool(pattern) and (_found(pattern, resource) or _found(pattern, product))


def bytes_per_second(row: Accelerator, product: str) -> float:
    """How fast one device of that product reads its memory; roughly."""
    for pattern, gigabytes in row.gigabytes_per_second.items():
        if product and _found(pattern, product):
            return gigabytes * 1e9
    return row.default_gigabytes_per_second * 1e9


def _memory(
    source: MemorySource, resource: str, product: str, labels: Mapping[str, str]
) -> tuple[int | None, str]:
    """Bytes of one device by that source, and the label or the words for where it is from."""
    if source.only and not matches(source.only, resource):
        return None, ""
    if source.products is not None:
        return _by_name(source.products, product), f"the table's figure for {product}"
    if source.resource_products is not None:
        return _by_name(source.resource_products, resource), f"the table's figure for {resource}"
    if source.resource:
        match = re.search(source.resource, resource)
        size = parse_size(match[1], source.unit) if match else None
        return size, f"the name of {resource}"
    if source.label_prefix:
        return _by_prefix(source, labels)
    key = source.label.replace("{resource}", resource)
    size = parse_size(labels.get(key, ""), source.unit)
    if size and source.divided_by:
        count = labels.get(source.divided_by, "")
        size = size // int(count) if count.isdecimal() and int(count) else None
    return size, key


def _by_name(products: Mapping[str, str], name: str) -> int | None:
    for pattern, size in products.items():
        if name and _found(pattern, name):
            return parse_bytes(size)
    return None


def _by_prefix(source: MemorySource, labels: Mapping[str, str]) -> tuple[int | None, str]:
    for key in sorted(labels):
        if key.startswith(source.label_prefix):
            size = parse_size(key.removeprefix(source.label_prefix), source.unit)
            if size:
                return size, key
    return None, ""


def _replicas(
    row: Accelerator, resource: str, allocatable: int, labels: Mapping[str, str]
) -> tuple[int, str]:
    for source in row.replicas:
        if source.only and not matches(source.only, resource):
            continue
        key = (source.label or source.devices_label).replace("{resource}", resource)
        text = labels.get(key, "")
        if not text.isdecimal():
            continue
        number = int(text)
        if source.devices_label:
            number = allocatable // number if number else 1
        return min(MAX_REPLICAS, max(1, number)), key
    return 1, ""
