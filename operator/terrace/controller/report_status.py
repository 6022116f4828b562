"""What a replica's report becomes in the status: speeds and the use of its prefix cache.

Owns: what is worth storing and how coarse, so that a replica that does nothing changes nothing.
Does not own: reading reports (``report.py``), the rest of the status (``status.py``). Pure. Without
a report the numbers of before stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ValidationError

from terrace.api.status import CacheStatus, PerformanceStatus, TierUseStatus

if TYPE_CHECKING:
    from terrace.controller.kinds import Manifest
    from terrace_runtime.contract import RuntimeReport, TierReport

PEAK_STEP = 1 << 20
"""Peaks are shown in whole MiB, so that a page more is no change."""
PERCENT_STEP = 5


def performance_status(report: RuntimeReport | None, before: Manifest) -> PerformanceStatus | None:
    """Measured speeds in whole tokens per second, and the peak of memory."""
    if report is None:
        try:
            return PerformanceStatus.model_validate(before["performance"])
        except (KeyError, ValidationError):
            return None
    peak = report.memory.anonymous_peak_bytes
    return PerformanceStatus(
        prompt_tokens_per_second=round(report.prompt_tokens_per_second),
        generated_tokens_per_second=round(report.generated_tokens_per_second),
        peak_memory_bytes=None if peak is None else -(-peak // PEAK_STEP) * PEAK_STEP,
    )


def cache_status(report: RuntimeReport | None, before: Manifest) -> CacheStatus | None:
    """How the tiers are used: parts in steps of five percent."""
    if report is None:
        try:
            return CacheStatus.model_validate(before["cache"])
        except (KeyError, ValidationError):
            return None
    cache = report.engine.cache
    tiers = [_tier(tier, cache.queried_tokens) for tier in cache.tiers if tier.limit_bytes]
    return CacheStatus(reuse=cache.reuse, tiers=tiers)


def _tier(tier: TierReport, queried_tokens: int) -> TierUseStatus:
    return TierUseStatus(
        name=tier.name,
        limit_bytes=tier.limit_bytes,
        used_percent=_percent(tier.used_bytes, tier.limit_bytes),
        hit_percent=_percent(tier.hit_tokens, queried_tokens),
    )


def _percent(part: int, whole: int) -> int:
    if whole <= 0:
        return 0
    return min(100, round(100 * part / whole / PERCENT_STEP) * PERCENT_STEP)
