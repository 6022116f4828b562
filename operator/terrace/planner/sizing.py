"""How much context and how many sequences: the user's numbers, else defaults that may shrink.

Owns: the defaults and the order in which they shrink. Does not own: what fits (``placement.py``).
Pure. What the user wrote is never changed. Next: ``placement.py`` takes the first size that fits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from terrace.api.model import Context
    from terrace_runtime.contract import ModelFacts

DEFAULT_CONTEXT_TOKENS = 8192
MIN_CONTEXT_TOKENS = 2048
"""A default does not shrink below this; a chat does not fit into less."""
DEFAULT_PARALLEL = 4
MAX_DEFAULT_PARALLEL = 16
"""A device that has room for the cells of more sequences gets so many at most."""


@dataclass(frozen=True, slots=True)
class Size:
    """One choice of context and parallelism, and why it is this one."""

    context_tokens: int
    parallel: int
    reasons: tuple[str, ...]
    is_extra: bool = False
    """Larger than the default: for devices that would lie idle otherwise."""

    def __str__(self) -> str:
        return f"context.length {self.context_tokens:,} with context.parallel {self.parallel}"


def sizes(
    facts: ModelFacts,
    context: Context,
    *,
    most_parallel: int | None = None,
    with_extra: bool = False,
) -> Iterator[Size]:
    """Sizes in order of preference: first fewer sequences, then less context, halving.

    At least one; only numbers that ``context`` leaves out change. ``most_parallel``: sequences that
    a device's kernels take. ``with_extra``: those above the default come first.
    """
    tokens, why_tokens = _context(facts, context)
    parallel, why_parallel = _parallel(context, most_parallel)
    if with_extra and context.parallel is None:
        yield from _extra(tokens, why_tokens, most_parallel or MAX_DEFAULT_PARALLEL)
    steps: tuple[str, ...] = (why_tokens, why_parallel)
    yield Size(tokens, parallel, steps)
    while context.parallel is None and parallel > 1:
        smaller = parallel // 2
        steps = (*steps, f"parallel {parallel} does not fit: {smaller}")
        parallel = smaller
        yield Size(tokens, parallel, steps)
    while context.length is None and tokens > MIN_CONTEXT_TOKENS:
        smaller = max(MIN_CONTEXT_TOKENS, tokens // 2)
        steps = (*steps, f"context {tokens:,} tokens do not fit: {smaller:,}")
        tokens = smaller
        yield Size(tokens, parallel, steps)


def _extra(tokens: int, why_tokens: str, most: int) -> Iterator[Size]:
    parallel = min(most, MAX_DEFAULT_PARALLEL)
    while parallel > DEFAULT_PARALLEL:
        why = (
            f"parallel {parallel}: the device has room for the cells of so many beside the whole "
            f"model, {MAX_DEFAULT_PARALLEL} at most by default"
        )
        yield Size(tokens, parallel, (why_tokens, why), is_extra=True)
        parallel //= 2


def smaller_sizes(size: Size) -> Iterator[Size]:
    """Sizes to suggest to a user whose own numbers do not fit, in the same order."""
    tokens, parallel = size.context_tokens, size.parallel
    while parallel > 1:
        parallel //= 2
        yield Size(tokens, parallel, ())
    while tokens > MIN_CONTEXT_TOKENS:
        tokens = max(MIN_CONTEXT_TOKENS, tokens // 2)
        yield Size(tokens, parallel, ())


def _context(facts: ModelFacts, context: Context) -> tuple[int, str]:
    if context.length is not None:
        return context.length, f"context {context.length:,} tokens: spec.context.length"
    if facts.context_length <= DEFAULT_CONTEXT_TOKENS:
        own = facts.context_length
        return own, f"context {own:,} tokens: what the model was trained for"
    return DEFAULT_CONTEXT_TOKENS, (
        f"context {DEFAULT_CONTEXT_TOKENS:,} tokens: the default; the model was trained for "
        f"{facts.context_length:,}, set spec.context.length for more"
    )


def _parallel(context: Context, most: int | None) -> tuple[int, str]:
    if context.parallel is not None:
        return context.parallel, f"parallel {context.parallel}: spec.context.parallel"
    if most is not None and most < DEFAULT_PARALLEL:
        return most, f"parallel {most}: the device's kernels take no more"
    return DEFAULT_PARALLEL, f"parallel {DEFAULT_PARALLEL}: conversations at a time by default"
