"""What no room can help: a context, number formats or settings that cannot be.

Owns: these refusals and their words. Does not own: what does not fit (``shortage.py``). Pure. Next:
``placement.py`` asks here first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace.api.conditions import Reason
from terrace.planner.geometry import KV_BLOCK
from terrace.planner.projector import refuse_pair
from terrace.planner.room import NoPlacement
from terrace.planner.tiers import contradiction

if TYPE_CHECKING:
    from terrace.api.model import ModelSpec
    from terrace.api.offload import KvTypes
    from terrace.planner.room import Room
    from terrace.planner.shapes import Wish
    from terrace_runtime.contract import ModelFacts

MIN_CONTEXT = 64
"""Least context that the runtime takes."""
PHI3_LAYERS = 32
"""*Seen*: with 40 layers the graph has more nodes than the 8 per tensor that this build counts."""


def refusal_of(wish: Wish) -> NoPlacement | None:
    """Why ``wish`` cannot be, wherever it is placed; None when it can."""
    return (
        _refuse_context(wish.facts, wish.spec)
        or _refuse_kv_types(wish.facts, wish.kv_types)
        or _refuse_kv_pair(wish)
        or _refuse_offload(wish)
        or _refuse_projector(wish)
    )


def refusal_in(wish: Wish, room: Room) -> NoPlacement | None:
    """Why the kernels of ``room``'s devices do not take ``wish``."""
    most = None if room.device is None else room.device.max_parallel
    wanted = wish.spec.context.parallel
    if most is None or wanted is None or wanted <= most:
        return None
    return NoPlacement(
        Reason.NO_NODE_FITS,
        f"flavor {room.flavor.name}: spec.context.parallel is {wanted}, its device takes {most} at "
        f"a time: set it to {most} or less, or choose another flavor",
    )


def _refuse_projector(wish: Wish) -> NoPlacement | None:
    projector = wish.model.projector
    return refuse_pair(wish.facts, projector, wish.ubatch_tokens) if projector else None


def _refuse_context(facts: ModelFacts, spec: ModelSpec) -> NoPlacement | None:
    wanted, own = spec.context.length, facts.context_length
    if own < MIN_CONTEXT:
        message = f"the model was trained for {own} tokens; at least {MIN_CONTEXT} are needed"
    elif wanted is not None and wanted > own:
        message = (
            f"spec.context.length is {wanted:,} tokens, the model was trained for {own:,}; "
            f"set it to {own:,} or less"
        )
    else:
        return None
    return NoPlacement(Reason.CONTEXT_TOO_LONG, message)


def _refuse_kv_types(facts: ModelFacts, kv_types: KvTypes) -> NoPlacement | None:
    """llama.cpp quantises each head on its own, in blocks of KV_BLOCK values."""
    for run in facts.layers:
        heads = (("key", kv_types.key, run.key_length), ("value", kv_types.value, run.value_length))
        for field, kind, length in heads:
            if kind != "f16" and run.kv_heads and length % KV_BLOCK:
                return NoPlacement(
                    Reason.UNSUPPORTED_KV_TYPE,
                    f"offload.kvTypes.{field} {kind} needs heads of a multiple of {KV_BLOCK} "
                    f"values, this model's have {length}; use f16",
                )
    return None


def _refuse_kv_pair(wish: Wish) -> NoPlacement | None:
    """What this build of llama.cpp cannot open, or aborts on."""
    facts, types = wish.facts, wish.kv_types
    is_latent = any(run.kv_heads and not run.value_length for run in facts.layers)
    if is_latent and types.key != types.value:
        why = "this model's attention takes its values from the keys: set both to one type"
    elif (
        facts.architecture == "phi3"
        and facts.layer_count > PHI3_LAYERS
        and (types.key, types.value) != ("f16", "f16")
        and wish.offload.kv_layout != "Unified"
    ):
        why = (
            "llama.cpp aborts on phi3 models of so many layers with quantised cells of several "
            "sequences: use f16, or offload.kvLayout Unified"
        )
    else:
        return None
    return NoPlacement(
        Reason.UNSUPPORTED_KV_TYPE, f"offload.kvTypes {types.key} and {types.value}: {why}"
    )


def _refuse_offload(wish: Wish) -> NoPlacement | None:
    problem = contradiction(wish.offload, wish.bytes_per_token)
    if not problem:
        return None
    whose = "the model's settings over its pool's"
    return NoPlacement(Reason.INVALID_OFFLOAD, f"{problem} ({whose})")
