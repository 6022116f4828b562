"""Why a plan is as it is, in sentences with numbers: what ``status.plan.reasons`` shows.

Owns: the words. Does not own: the numbers (``footprint.py``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.planner.footprint import CELL_OVERHEAD_BYTES, HEADROOM
from terrace.planner.geometry import cells, kv_bytes_per_cell, step_tokens, window_cells
from terrace.planner.nodes import format_bytes

if TYPE_CHECKING:
    from terrace.planner.footprint import Footprint
    from terrace.planner.geometry import Shape
    from terrace_runtime.contract import ModelFacts


def byte_reasons(
    facts: ModelFacts, shape: Shape, size: Footprint, limit_bytes: int
) -> tuple[str, ...]:
    """One sentence for each part of the memory, then one each for request and limit."""
    per_cell = kv_bytes_per_cell(facts, shape)
    all_cells = format_bytes(shape.parallel * cells(shape) * per_cell)
    fixed, floor = format_bytes(size.anonymous_bytes), format_bytes(size.page_cache_bytes)
    sequences = "1 sequence" if shape.parallel == 1 else f"{shape.parallel} sequences"
    return (
        _weights_reason(shape, size),
        (
            f"KV cells: {sequences} x {cells(shape):,} tokens x {per_cell:,} B = {all_cells} "
            f"(keys {shape.kv_key_type}, values {shape.kv_value_type}), "
            f"and {CELL_OVERHEAD_BYTES} B of notes on each"
        ),
        *_class_reasons(facts, shape, size),
        (
            f"compute: {format_bytes(size.compute_bytes)} for steps of {shape.ubatch_tokens} "
            f"tokens and logits of {facts.vocabulary:,} values"
        ),
        f"programs: {format_bytes(size.base_bytes)} for server, engine and vocabulary",
        *_tiers_reasons(shape, size),
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


def _class_reasons(facts: ModelFacts, shape: Shape, size: Footprint) -> tuple[str, ...]:
    """Where cells are not all that a sequence needs, or not all of them are kept."""
    found = []
    window = max(run.window for run in facts.layers)
    if window:
        kept = window_cells(window, shape)
        found.append(
            f"layers with a window of {window:,} tokens keep {kept:,} cells of "
            f"{shape.parallel * cells(shape):,}: the KV cache takes {format_bytes(size.kv_bytes)}"
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
    if shape.tiers.weights == "loaded":
        more = (
            f", and {format_bytes(size.loading_bytes)} to load them" if size.loading_bytes else ""
        )
        return f"{words}, read into memory{more}"
    if shape.tiers.weights == "paged":
        return (
            f"{words}, paged from the file and never copied: {format_bytes(size.mapped_bytes)} at "
            "least stay in memory, as many more as the limit allows, and each step reads the rest "
            "from disk"
        )
    if size.repacked_bytes:
        copied = format_bytes(size.repacked_bytes)
        return f"{words}, mapped from the file; {copied} of them copied for the CPU's kernels"
    return f"{words}, mapped from the file"


def _tiers_reasons(shape: Shape, size: Footprint) -> tuple[str, ...]:
    if not size.tiers_bytes:
        return ()
    if size.tiers_bytes == shape.tiers.host_bytes:
        return (f"tiers: {format_bytes(size.tiers_bytes)} for whole states in host memory",)
    moved = "16 blocks" if shape.tiers.is_unified else "one sequence"
    parts = f"the host tier, {moved} on the way to or from it, "
    parts += "landing buffers, " if shape.tiers.disk_bytes else ""
    return (f"tiers: {format_bytes(size.tiers_bytes)} for {parts}and the index of the blocks",)
