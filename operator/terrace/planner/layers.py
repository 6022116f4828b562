"""Bytes of the layers as running sums: what the first n layers weigh, keep and have read.

Owns: LayerSums. Does not own: which layers lie where (``geometry.places``), which should
(``split.py``). Pure. Next: ``footprint.py`` and ``split.py`` take differences of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, chain, repeat
from typing import TYPE_CHECKING

from terrace.planner.geometry import cells, padded, row_bytes, step_tokens, window_cells

if TYPE_CHECKING:
    from terrace.planner.geometry import Shape
    from terrace_runtime.contract import LayerRun, ModelFacts

EMBEDDING_SEQUENCES = 64
"""Inputs that one step of an embedding model may hold."""

Sums = tuple[int, ...]
"""At n: the sum over the first n layers; one item more than there are layers."""


@dataclass(frozen=True, slots=True)
class LayerSums:
    """Running sums of bytes, by kind."""

    weights: Sums
    """Experts included."""
    experts: Sums
    """What of a layer may stay on the host alone: experts or, if asked so, feed-forward weights."""
    repacked: Sums
    """Part of ``weights`` that CPU kernels copy."""
    repacked_experts: Sums
    kv: Sums
    """Cells and recurrent state of all sequences."""
    kv_read: Sums
    """Cells and state that one token of one conversation reads."""


def layer_sums(
    facts: ModelFacts, shape: Shape, read_tokens: int | None = None, *, is_dense: bool = False
) -> LayerSums:
    """Sums over the layers of ``facts`` for the cells of ``shape``.

    ``read_tokens``: tokens of the conversation for ``kv_read``; None: nobody asks. ``is_dense``:
    feed-forward weights count as experts.
    """
    runs = facts.layers
    weights = _MEMO.weight_sums(runs, is_dense=is_dense)
    whole, sequences = whole_cells(facts, shape), num_states(facts, shape)
    kept, read = [], []
    for run, state in zip(runs, layer_states(facts), strict=True):
        row, window = row_bytes(run, shape) // run.count, run.window
        kept.append(row * (window_cells(window, shape) if window else whole) + state * sequences)
        if read_tokens is not None:
            read.append(row * (min(read_tokens, window) if window else read_tokens) + state)
    return LayerSums(*weights, kv=_sums(runs, kept), kv_read=_sums(runs, read) if read else ())


class _Memo:
    """Sums of weights of the model that was planned last: they are the same for every size."""

    def __init__(self) -> None:
        self._runs: tuple[LayerRun, ...] = ()
        self._found: dict[bool, tuple[Sums, Sums, Sums, Sums]] = {}

    def weight_sums(
        self, runs: tuple[LayerRun, ...], *, is_dense: bool
    ) -> tuple[Sums, Sums, Sums, Sums]:
        """Weights, movable weights, repacked, repacked movable, as in LayerSums."""
        if runs is not self._runs:
            self._runs, self._found = runs, {}
        if is_dense not in self._found:
            movable = [run.feed_forward_bytes if is_dense else run.expert_bytes for run in runs]
            both = [min(run.repacked_bytes, each) for run, each in zip(runs, movable, strict=True)]
            self._found[is_dense] = (
                _sums(runs, [run.weight_bytes for run in runs]),
                _sums(runs, movable),
                _sums(runs, [run.repacked_bytes for run in runs]),
                _sums(runs, both),
            )
        return self._found[is_dense]


_MEMO = _Memo()


def _sums(runs: tuple[LayerRun, ...], per_layer: list[int]) -> Sums:
    each = map(repeat, per_layer, [run.count for run in runs])
    return tuple(accumulate(chain.from_iterable(each), initial=0))


def whole_cells(facts: ModelFacts, shape: Shape) -> int:
    """KV cells of all sequences in a layer that forgets nothing; 0 where no layer keeps cells."""
    if not any(run.kv_heads for run in facts.layers):
        return 0
    if facts.pooling:
        # One input that is under way, and a step of others: sequences share the cells.
        return cells(shape) + padded(step_tokens(facts, shape))
    return shape.parallel * cells(shape)


def num_states(facts: ModelFacts, shape: Shape) -> int:
    """Recurrent states that are kept."""
    return EMBEDDING_SEQUENCES if facts.pooling else shape.parallel + shape.tiers.is_unified


def layer_states(facts: ModelFacts) -> list[int]:
    """Recurrent state of one sequence, per layer of each run.

    Facts of an older header reader tell the sum alone: it is spread over the layers without cells.
    """
    if not facts.recurrent_bytes or any(run.state_bytes for run in facts.layers):
        return [run.state_bytes for run in facts.layers]
    bare = sum(run.count for run in facts.layers if not run.kv_heads) or facts.layer_count
    each = -(-facts.recurrent_bytes // bare)
    return [each if bare == facts.layer_count or not run.kv_heads else 0 for run in facts.layers]
