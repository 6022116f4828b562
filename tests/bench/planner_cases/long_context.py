"""long-context: prompts of 4k to 128k tokens in replicas under the very limits planned for them.

Owns: the sizes and the row of each. Does not own: planning, running and filling a replica
(``limit.py``). One sequence, whose prompt fills its context but for a short answer; what a prompt
of 128k tokens takes is told, and what it may take is the plan's memory. Needs root.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.planner_cases.limit import ANSWER_TOKENS, anonymous_bytes, fill, plan_of
from bench.verdict import Metric, absolute, lost
from build.workshop import say
from support.memory_limit import unavailable
from support.planning import MIB

if TYPE_CHECKING:
    from bench.verdict import Line

METRIC = Metric("long-context", "peak/planned", 1.0, less_is_better=True)
SIZES = (("tiny-q8_0", 4096), ("tiny-q8_0", 16_384), ("tiny-q8_0", 32_768), ("long-q8_0", 131_072))


def run() -> Line:
    """The largest share of its planned memory that a replica took, with a row per size."""
    if why := unavailable():
        return lost(METRIC, why)
    rows = [_row(name, context) for name, context in SIZES]
    line = absolute(METRIC, [{METRIC.id: max(row["peak/planned"] for row in rows)}])
    last = rows[-1]
    also = f"none killed; {last['prompt']} tokens took {last['seconds']:.0f} s"
    return {**line, "rounds": len(rows), "also": also, "rows": rows}


def _row(name: str, context: int) -> Line:
    say(f"long-context {name} {context}")
    plan = plan_of(name, "Balanced", context, parallel=1)
    if plan.context_tokens != context:
        raise RuntimeError(f"{name}: planned for {plan.context_tokens} tokens instead of {context}")
    filled = fill(name, plan, prompts=1)
    planned, prompt = anonymous_bytes(plan), context - ANSWER_TOKENS
    return {
        "model": name,
        "prompt": prompt,
        "seconds": round(filled.seconds, 1),
        "tokens/s": round(prompt / filled.seconds),
        "anonymous planned MiB": round(planned / MIB),
        "anonymous peak MiB": round(filled.peak_bytes / MIB),
        "limit MiB": round(plan.memory_limit_bytes / MIB),
        "peak/planned": round(filled.peak_bytes / planned, 3),
        "pages taken back": filled.times_full,
    }
