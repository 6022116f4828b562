"""What the rounds of a case come to: one JSON object per line of the table.

Owns: metrics and their targets, ratios, ranges and percentiles, pure. Does not own: measuring
(``comparison.py``, ``cases``). ``ours`` and ``peer`` are medians over rounds; ``ratio`` is the
median of the rounds' own ratios, because what disturbs a shared machine disturbs both sides of one
round more alike than two rounds. Where there is no peer, ``ours`` itself is held to the target.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Line = dict[str, Any]
Sample = dict[str, float]
"""What one side of one round measured, by metric's id; other names are told beside the verdict."""


@dataclass(frozen=True)
class Metric:
    """One line of the table."""

    id: str
    unit: str
    target: float
    less_is_better: bool = False
    """True: the ratio (or without a peer, ours) may be at most the target; else at least."""

    def is_met(self, value: float) -> bool:
        """Whether a ratio, or ours where there is no peer, reaches the target."""
        return value <= self.target if self.less_is_better else value >= self.target

    def best(self, found: Mapping[str, Sample]) -> str:
        """The name whose sample is the best one."""
        order = sorted(found, key=lambda name: found[name][self.id])
        return order[0 if self.less_is_better else -1]


def verdict(metric: Metric, pairs: Sequence[tuple[Sample, Sample]], **extras: object) -> Line:
    """The line of pairs of samples, ours and the peer's."""
    ours, peer = [mine for mine, _ in pairs], [theirs for _, theirs in pairs]
    ratios = [mine[metric.id] / theirs[metric.id] for mine, theirs in pairs]
    ratio = statistics.median(ratios)
    return {
        "case": metric.id,
        "ours": _median(ours, metric.id),
        "peer": _median(peer, metric.id),
        "unit": metric.unit,
        "ratio": significant(ratio),
        "rounds": len(pairs),
        "target": metric.target,
        "less_is_better": metric.less_is_better,
        "ok": metric.is_met(ratio),
        "ratio_range": [significant(min(ratios)), significant(max(ratios))],
        "ours_range": _range(ours, metric.id),
        "peer_range": _range(peer, metric.id),
        "ours_also": _others(ours, metric),
        "peer_also": _others(peer, metric),
        "load_average": _load(),
        **extras,
    }


def absolute(metric: Metric, samples: Sequence[Sample], **extras: object) -> Line:
    """The line of something that has no peer: ours is held to the target."""
    value = statistics.median(sample[metric.id] for sample in samples)
    return {
        "case": metric.id,
        "ours": significant(value),
        "peer": None,
        "unit": metric.unit,
        "ratio": None,
        "rounds": len(samples),
        "target": metric.target,
        "less_is_better": metric.less_is_better,
        "ok": metric.is_met(value),
        "ours_range": _range(samples, metric.id),
        "ours_also": _others(samples, metric),
        "load_average": _load(),
        **extras,
    }


def lost(metric: Metric, why: str) -> Line:
    """The line of a case that measured nothing."""
    return {
        "case": metric.id,
        "ours": None,
        "peer": None,
        "unit": metric.unit,
        "ratio": None,
        "rounds": 0,
        "target": metric.target,
        "less_is_better": metric.less_is_better,
        "ok": False,
        "why": why,
        "load_average": _load(),
    }


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that ``percent`` of the values lie below; of no values 0."""
    if not values:
        return 0.0
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def significant(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def _median(samples: Sequence[Sample], name: str) -> float:
    return significant(statistics.median(sample[name] for sample in samples))


def _range(samples: Sequence[Sample], name: str) -> list[float]:
    values = [sample[name] for sample in samples]
    return [significant(min(values)), significant(max(values))]


def _others(samples: Sequence[Sample], metric: Metric) -> Sample:
    names = [name for name in samples[0] if name != metric.id]
    return {name: _median(samples, name) for name in names}


def _load() -> float:
    return round(os.getloadavg()[0], 1)
