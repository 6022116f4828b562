"""Shortens ModelFacts until they fit into a termination message.

Owns: which kinds of layers become one. Does not own: the facts themselves (``facts``) or how runs
are packed (``contract.packed``). Pure. A joined kind takes the larger value of each field, so
memory is over-estimated, never under (and the smaller expert share, so
that what must stay beside the attention is over-estimated as well).
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations

from terrace_runtime.contract import FetchOutcome, LayerRun, ModelFacts
from terrace_runtime.contract.packed import pack
from terrace_runtime.models.errors import FetchError

_MAX_KINDS = 64
"""More kinds are first joined with their neighbours: pairs of all would be too many to compare."""


def message(outcome: FetchOutcome, max_bytes: int) -> str:
    """``outcome`` as JSON of at most ``max_bytes``; ``layers_are_merged`` says what it took.

    Raises FetchError when even facts with one kind of layer are too long.
    """
    if outcome.facts is None:
        return outcome.model_dump_json(exclude_defaults=True)
    limit = len({_kind(run) for run in outcome.facts.layers})
    while True:
        text = _packed(outcome)
        if len(text.encode()) <= max_bytes:
            return text
        limit -= 1
        if limit < 1:
            raise FetchError("InvalidModel", f"its facts do not fit into {max_bytes} bytes")
        assert outcome.facts is not None
        outcome = outcome.model_copy(update={"facts": fit(outcome.facts, limit)})


def fit(facts: ModelFacts, max_kinds: int) -> ModelFacts:
    """``facts`` with at most so many kinds of layers: the most alike become one."""
    layers = merge_kinds(merge_neighbours(facts.layers, max(_MAX_KINDS, max_kinds)), max_kinds)
    if layers == facts.layers:
        return facts
    return facts.model_copy(update={"layers": layers, "layers_are_merged": True})


def merge_neighbours(runs: tuple[LayerRun, ...], max_kinds: int) -> tuple[LayerRun, ...]:
    """Runs of twice, four times ... as many layers, until they are of so few kinds."""
    while len({_kind(run) for run in runs}) > max_kinds:
        halves = zip(runs[::2], (*runs[1::2], None), strict=False)
        runs = tuple(first if second is None else _join(first, second) for first, second in halves)
    return runs


def merge_kinds(runs: tuple[LayerRun, ...], max_kinds: int) -> tuple[LayerRun, ...]:
    """At most ``max_kinds`` kinds: the two whose merge adds the fewest bytes become one, and so on.

    The order of layers and their count stay.
    """
    kinds = Counter[LayerRun]()
    for run in runs:
        kinds[_kind(run)] += run.count
    becomes = {kind: kind for kind in kinds}
    while len(kinds) > max(1, max_kinds):
        pairs = combinations(kinds.items(), 2)
        (first, _), (second, _) = min(pairs, key=_cost_of_merging)
        joined = _kind(_join(first, second))
        count = kinds.pop(first) + kinds.pop(second)
        kinds[joined] += count
        becomes = {old: joined if new in (first, second) else new for old, new in becomes.items()}
    merged: list[LayerRun] = []
    for run in runs:
        kind = becomes[_kind(run)]
        if merged and _kind(merged[-1]) == kind:
            count = merged.pop().count + run.count
        else:
            count = run.count
        merged.append(kind.model_copy(update={"count": count}))
    return tuple(merged)


def _packed(outcome: FetchOutcome) -> str:
    assert outcome.facts is not None
    facts = outcome.facts.model_dump(exclude_defaults=True) | {"layers": pack(outcome.facts.layers)}
    whole = outcome.model_dump(exclude_defaults=True) | {"facts": facts}
    return json.dumps(whole, separators=(",", ":"), ensure_ascii=False)


def _kind(run: LayerRun) -> LayerRun:
    return run.model_copy(update={"count": 1})


def _join(first: LayerRun, second: LayerRun) -> LayerRun:
    full = not (first.window and second.window) and (first.kv_heads and second.kv_heads)
    return LayerRun(
        count=first.count + second.count,
        weight_bytes=max(first.weight_bytes, second.weight_bytes),
        expert_bytes=min(first.expert_bytes, second.expert_bytes),
        feed_forward_bytes=min(first.feed_forward_bytes, second.feed_forward_bytes),
        kv_heads=max(first.kv_heads, second.kv_heads),
        key_length=max(first.key_length, second.key_length),
        value_length=max(first.value_length, second.value_length),
        window=0 if full else max(first.window, second.window),
        repacked_bytes=max(first.repacked_bytes, second.repacked_bytes),
        state_bytes=max(first.state_bytes, second.state_bytes),
    )


def _cost_of_merging(pair: tuple[tuple[LayerRun, int], tuple[LayerRun, int]]) -> int:
    """Bytes that merging two kinds adds, each given with the number of its layers."""
    (first, firsts), (second, seconds) = pair
    together = (firsts + seconds) * _cost(_join(first, second))
    return together - firsts * _cost(first) - seconds * _cost(second)


def _cost(run: LayerRun, cells: int = 8192) -> int:
    """Bytes of a layer with f16 KV of ``cells`` tokens: the measure for the least harmful merge."""
    kept = min(run.window, cells) if run.window else cells
    row = 2 * run.kv_heads * (run.key_length + run.value_length)
    return run.weight_bytes + row * kept + run.state_bytes
