"""Shortens ModelFacts until they fit into a termination message.

Owns: which layer runs are merged. Does not own: the facts themselves (``facts``). Pure. A merged
run takes the larger value of each field, so memory is over-estimated, never under (and the smaller
expert share, so that what must stay beside the attention is over-estimated as well).
"""

from __future__ import annotations

from itertools import pairwise

from terrace_runtime.contract import LayerRun, ModelFacts
from terrace_runtime.models.errors import FetchError


def fit(facts: ModelFacts, max_bytes: int) -> ModelFacts:
    """``facts`` in at most ``max_bytes`` of JSON: the most alike neighbouring layers are merged.

    ``layers_are_merged`` says so then. Raises FetchError when even one run is too long.
    """
    while len(facts.model_dump_json(exclude_defaults=True).encode()) > max_bytes:
        if len(facts.layers) == 1:
            raise FetchError("InvalidModel", f"its facts do not fit into {max_bytes} bytes")
        layers = merge_down(facts.layers, len(facts.layers) - 1)
        facts = facts.model_copy(update={"layers": layers, "layers_are_merged": True})
    return facts


def merge_down(runs: tuple[LayerRun, ...], limit: int) -> tuple[LayerRun, ...]:
    """At most ``limit`` runs: the neighbours whose merge adds the fewest bytes go first."""
    merged = list(runs)
    while len(merged) > limit:
        pairs = [_join(a, b) for a, b in pairwise(merged)]
        costs = [
            _cost(pair) - _cost(merged[i]) - _cost(merged[i + 1]) for i, pair in enumerate(pairs)
        ]
        best = costs.index(min(costs))
        merged[best : best + 2] = [pairs[best]]
    return tuple(merged)


def _join(first: LayerRun, second: LayerRun) -> LayerRun:
    full = not (first.window and second.window) and (first.kv_heads and second.kv_heads)
    return LayerRun(
        count=first.count + second.count,
        weight_bytes=max(first.weight_bytes, second.weight_bytes),
        expert_bytes=min(first.expert_bytes, second.expert_bytes),
        kv_heads=max(first.kv_heads, second.kv_heads),
        key_length=max(first.key_length, second.key_length),
        value_length=max(first.value_length, second.value_length),
        window=0 if full else max(first.window, second.window),
    )


def _cost(run: LayerRun, cells: int = 8192) -> int:
    """Bytes of a run with f16 KV of ``cells`` tokens: the measure for the least harmful merge."""
    kept = min(run.window, cells) if run.window else cells
    row = 2 * run.kv_heads * (run.key_length + run.value_length)
    return run.count * (run.weight_bytes + row * kept)
