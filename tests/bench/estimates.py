"""Compares a plan's parts with what llama.cpp reports for the same settings.

Owns: which bytes of a plan stand against which of llama.cpp's, and the error. Does not own: asking
llama.cpp (``allocation.py``) or which models (``planner_cases``). Left out on both sides is what
llama.cpp does not report: its notes about cells, the threads' work space, programs. Rows of logits
are counted as they are kept while it runs: for models that output every token, llama.cpp reports
those of 64 sequences when it starts and takes those of a whole step with the first input (seen in
its RssAnon: all-MiniLM grows by 62 MiB with 512 tokens, Nomic Embed by 240 MiB with 2,048).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from terrace.planner.activations import FLOAT
from terrace.planner.compute_buffer import work_bytes
from terrace.planner.footprint import Footprint, footprint, note_bytes
from terrace.planner.geometry import DeviceSplit, Shape, step_tokens
from terrace.planner.placed import HEADROOM
from terrace.planner.tiers import Tiers

if TYPE_CHECKING:
    from bench.allocation import Answer, Ask
    from terrace_runtime.contract import ModelFacts

MIB = 2**20


@dataclass(frozen=True)
class Compared:
    """Bytes of one context: planned, reported, and what the plan adds as a margin."""

    planned: int
    reported: int
    margin: int
    graph_percent: float = 0.0
    """Error of the graph alone, which is a small part."""

    @property
    def percent(self) -> float:
        """Above zero: the plan is larger."""
        return 100 * (self.planned - self.reported) / self.reported

    @property
    def is_safe(self) -> bool:
        """Whether what lacks is within the margin."""
        return self.planned + self.margin >= self.reported


def shape_of(ask: Ask, split: DeviceSplit | None = None) -> Shape:
    """The planner's shape of what llama.cpp was asked for."""
    key, value = ask.key_type, ask.value_type
    tiers = Tiers("mapped", is_unified=ask.unified)
    return Shape(ask.context, ask.parallel, ask.ubatch, key, value, ask.guessed, tiers, split)


def compared(facts: ModelFacts, ask: Ask, answer: Answer) -> Compared:
    """Everything in host memory."""
    shape = shape_of(ask)
    size = footprint(facts, shape)
    graph, rows = answer.total("compute"), outputs(facts, shape, answer)
    reported = answer.weights + answer.cells + answer.states + graph + rows
    planned = size.compute_bytes - work_bytes(facts, shape) - rows
    return Compared(
        host_bytes(facts, shape, size), reported, margin(size), 100 * (planned - graph) / graph
    )


def host_bytes(facts: ModelFacts, shape: Shape, size: Footprint) -> int:
    """The plan's bytes of host memory that llama.cpp reports too."""
    unseen = note_bytes(facts, shape) + work_bytes(facts, shape)
    return size.host_weights_bytes + size.kv_bytes + size.compute_bytes - unseen


def outputs(facts: ModelFacts, shape: Shape, answer: Answer) -> int:
    """Rows of logits while it runs."""
    if facts.model_class == "decoder" and not facts.pooling:
        return answer.total("output")
    tokens = step_tokens(facts, shape)
    return FLOAT * tokens * (facts.vocabulary + facts.embedding_length)


def margin(size: Footprint) -> int:
    """What the memory limit adds to the request."""
    return (size.compute_bytes + size.base_bytes) // HEADROOM
