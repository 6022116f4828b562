"""Why a plan is as it is, in sentences with numbers: what ``status.plan.reasons`` shows.

Owns: the words. Does not own: the numbers (``footprint.py``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.planner.footprint import CELL_OVERHEAD_BYTES, NO_EXTRAS
from terrace.planner.geometry import cells, kv_bytes_per_cell, step_tokens, window_cells
from terrace.planner.nodes import format_bytes
from terrace.planner.placed import HEADROOM

if TYPE_CHECKING:
    from terrace.planner.footprint import Extras, Footprint
    from terrace.planner.geometry import Shape
    from terrace_runtime.contract import ModelFacts


def byte_reasons(
    facts: ModelFacts,
    shape: Shape,
    size: Footprint,
    limit_bytes: int,
    extras: Extras = NO_EXTRAS,
) -> tuple[str, ...]:
    """One sentence for each part of the host's memory, then one each for request and limit."""
    fixed, floor = format_bytes(size.anonymous_bytes), format_bytes(size.page_cache_bytes)
    here = " in host memory" if shape.split else ""
    return (
        _weights_reason(shape, size),
        _cells_reason(facts, shape),
        *_class_reasons(facts, shape, size),
        *_cell_places(shape, size),
        (
            f"compute: {format_bytes(size.compute_bytes)}{here} for steps of {shape.ubatch_tokens} "
            f"tokens and logits of {facts.vocabulary:,} values"
        ),
        f"programs: {format_bytes(size.base_bytes)} for server, engine and vocabulary"
        + (", and for the device's driver" if shape.split else ""),
        *_tiers_reasons(shape, size),
        *_extra_reasons(extras),
        (
            f"memory request {format_bytes(size.request_bytes)}: {fixed} that cannot be reclaimed "
            f"and a page-cache floor of {floor} for mapped weights and libraries"
        ),
        (
            f"memory limit {format_bytes(limit_bytes)}: the request and {100 // HEADROOM} % "
            "of compute and programs, which are estimates"
            + (", and room for pages of weights" if limit_bytes > size.limit_bytes else "")
        ),
    )


def _cells_reason(facts: ModelFacts, shape: Shape) -> str:
    per_cell = kv_bytes_per_cell(facts, shape)
    all_cells = format_bytes(shape.parallel * cells(shape) * per_cell)
    sequences = "1 sequence" if shape.parallel == 1 else f"{shape.parallel} sequences"
    layout = ", one pool for all" if shape.tiers.is_unified else ""
    layout += ", one pool while requests share most of them" if shape.tiers.is_auto else ""
    return (
        f"KV cells: {sequences} x {cells(shape):,} tokens x {per_cell:,} B = {all_cells} "
        f"(keys {shape.kv_key_type}, values {shape.kv_value_type}{layout}), "
        f"and {CELL_OVERHEAD_BYTES} B of notes on each"
    )


def _cell_places(shape: Shape, size: Footprint) -> tuple[str, ...]:
    if shape.split is None:
        return ()
    there = format_bytes(sum(each.kv_bytes for each in size.devices))
    return (f"KV places: {there} on the device, {format_bytes(size.kv_bytes)} in host memory",)


def _extra_reasons(extras: Extras) -> tuple[str, ...]:
    found = []
    if projector := extras.projector.total:
        weights, compute, images = (
            format_bytes(each)
            for each in (
                extras.projector.weights,
                extras.projector.compute,
                extras.projector.images,
            )
        )
        found.append(
            f"projector: {format_bytes(projector)} in host memory: {weights} of weights, {compute} "
            f"to encode an image, {images} to decode one and to hold those of requests"
        )
    if extras.draft_bytes:
        found.append(
            f"draft model: {format_bytes(extras.draft_bytes)} for its weights, cells and graph, in "
            "host memory"
        )
    if extras.adapter_bytes:
        found.append(
            f"adapters: {format_bytes(extras.adapter_bytes)}, each part where its layer is"
        )
    if extras.correction.host_bytes or extras.correction.device_bytes:
        host, device = extras.correction.host_bytes, extras.correction.device_bytes
        found.append(
            f"correction: replicas of this file took {format_bytes(host)} of host memory and "
            f"{format_bytes(device)} of a device more than was planned; both are added"
        )
    return tuple(found)


def _class_reasons(facts: ModelFacts, shape: Shape, size: Footprint) -> tuple[str, ...]:
    """Where cells are not all that a sequence needs, or not all of them are kept."""
    found = []
    window = max(run.window for run in facts.layers)
    if window:
        kept = window_cells(window, shape)
        taken = size.kv_bytes + sum(each.kv_bytes for each in size.devices)
        found.append(
            f"layers with a window of {window:,} tokens keep {kept:,} cells of "
            f"{shape.parallel * cells(shape):,}: the KV cache takes {format_bytes(taken)}"
        )
    if facts.recurrent_bytes:
        state = format_bytes(facts.recurrent_bytes)
        found.append(f"recurrent layers keep {state} per sequence, whatever its length")
    if facts.pooling:
        tokens = step_tokens(facts, shape)
        found.append(f"embeddings: inputs share cells and steps of {tokens:,} tokens")
    return tuple(found)


def _weights_reason(shape: Shape, size: Footprint) -> str:
    words = f"weights: {format_bytes(size.weights_bytes)}"
    if shape.split is not None:
        words += f", {format_bytes(size.host_weights_bytes)} of them in host memory"
    if shape.tiers.weights == "loaded":
        loading = size.loading_bytes
        more = f", and {format_bytes(loading)} to load them" if loading else ""
        return f"{words}, read into memory{more}"
    if shape.tiers.weights == "paged":
        return (
            f"{words}, paged from the file and never copied: {format_bytes(size.mapped_bytes)} at "
            "least stay in memory, as many more as the limit allows, and each step reads the rest "
            "from disk"
        )
    words += ", mapped from the file"
    if size.repacked_bytes:
        words += f"; {format_bytes(size.repacked_bytes)} of them copied for the CPU's kernels"
    return words


def _tiers_reasons(shape: Shape, size: Footprint) -> tuple[str, ...]:
    if not size.tiers_bytes:
        return ()
    if size.tiers_bytes == shape.tiers.host_bytes:
        return (f"tiers: {format_bytes(size.tiers_bytes)} for whole states in host memory",)
    moved = "32 blocks" if shape.tiers.is_unified else "one sequence"
    parts = f"the host tier, {moved} on the way to or from it, "
    parts += "landing buffers, " if shape.tiers.disk_bytes else ""
    return (f"tiers: {format_bytes(size.tiers_bytes)} for {parts}and the index of the blocks",)
