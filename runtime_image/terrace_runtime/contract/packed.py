"""Layer runs as they travel in a termination message: each kind of layer once, then their order.

Owns: packing and unpacking. Models alternate between few kinds of layers (sliding windows, mixed
weight types), which as runs in full would not fit. Does not own: what a run says (``facts.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace_runtime.contract.facts import LayerRun

MAX_RUNS = 512
"""LLAMA_MAX_LAYERS of the pinned build."""


def pack(runs: Iterable[LayerRun]) -> dict[str, Any]:
    """``{"kinds": [a run without its count, ...], "order": [kind, count, kind, count, ...]}``."""
    kinds: dict[str, int] = {}
    order: list[int] = []
    bodies: list[dict[str, Any]] = []
    for run in runs:
        body = run.model_dump(exclude_defaults=True, exclude={"count"})
        index = kinds.setdefault(repr(body), len(kinds))
        if index == len(bodies):
            bodies.append(body)
        order += [index, run.count]
    return {"kinds": bodies, "order": order}


def unpack(value: object) -> object:
    """The runs of what ``pack`` made, as plain values; anything else is given back as it is.

    Raises ValueError when the order does not fit the kinds.
    """
    if not isinstance(value, dict) or set(value) != {"kinds", "order"}:
        return value
    kinds, order = value["kinds"], value["order"]
    if not isinstance(kinds, list) or not isinstance(order, list) or len(order) > 2 * MAX_RUNS:
        raise ValueError("kinds and order of packed layers are lists of at most 512 runs")
    runs = []
    for index, count in zip(order[::2], order[1::2], strict=True):
        if not isinstance(index, int) or not 0 <= index < len(kinds):
            raise ValueError(f"packed layers name the kind {index!r} of {len(kinds)}")
        if not isinstance(kinds[index], dict):
            raise ValueError("a kind of packed layers is not an object")  # noqa: TRY004 - pydantic takes ValueError
        runs.append({"count": count, **kinds[index]})
    return runs
