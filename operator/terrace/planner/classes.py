"""What a model's class leaves of the tiers below its KV cells.

Owns: which models reuse blocks, whole states or nothing (docs/model-classes.md), and the words for
it. Does not own: what tiers there could be (``tiers.py``). Pure. The replica probes the same when
it loads the model (``terrace_runtime.backend.capabilities``). Next: ``placement.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from terrace.planner.nodes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from terrace.planner.tiers import Tiers
    from terrace_runtime.contract import ModelFacts

Reuse = Literal["blocks", "checkpoints", "none"]

_NONE = "no host tier and no disk tier: nothing outlives a request to a model of this class"
_NO_DISK = (
    "no disk tier: the state of a model with recurrent or sliding-window layers is kept whole, "
    "in host memory, and cannot be cut into blocks"
)


def reuse_of(facts: ModelFacts) -> Reuse:
    """How the replica will keep what it computed."""
    if facts.model_class != "decoder" or facts.pooling:
        return "none"
    is_plain = not facts.recurrent_bytes and not any(run.window for run in facts.layers)
    return "blocks" if is_plain else "checkpoints"


def class_tiers(facts: ModelFacts, choices: Iterable[Tiers]) -> Iterator[Tiers]:
    """``choices`` as far as a model of this class can use them; at least one where there is one."""
    reuse = reuse_of(facts)
    for tiers in choices:
        if reuse == "blocks":
            yield tiers
            continue
        without = replace(tiers, disk_bytes=0, prefetch_bytes=0)
        profile = tiers.reasons[:1]
        if reuse == "none":
            yield replace(without, host_bytes=0, reasons=(*profile, _NONE))
            return
        host = tiers.reasons[1]
        if tiers.host_bytes:
            why = host.partition(": ")[2].partition(";")[0]
            host = (
                f"host tier {format_bytes(tiers.host_bytes)} of whole states: {why}; one every "
                f"{tiers.checkpoint_tokens:,} tokens of a prompt, at most "
                f"{tiers.checkpoint_count:,}"
            )
        yield replace(without, reasons=(*profile, host, _NO_DISK))
