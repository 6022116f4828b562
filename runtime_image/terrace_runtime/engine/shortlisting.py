"""When the device cuts logits to the likeliest few, and which requests are content with them.

Owns: the rule of switching. Does not own: the switch itself (``backend.shortlist``) or draws
(``sampling.py``). A switch makes llama.cpp lay its graphs out anew, so one request that needs whole
logits switches it off for all, and it comes back only after a while in which none did: a mix of
both kinds costs two switches in that time at most. The answers are the same either way. Pure but
for the switch: the clock's time is an argument. Next: ``core.py`` asks before each plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from terrace_runtime.engine.sampling import sampler_settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from terrace_runtime.backend.shortlist import Shortlist
    from terrace_runtime.engine.request import SamplingParams
    from terrace_runtime.engine.sequence import Sequence

QUIET_S = 5.0
"""No request needed whole logits for so long."""
_SWITCH_SHARE = 0.02
"""Most of the time that may go into a switch."""


def needs_whole_logits(params: SamplingParams, size: int) -> bool:
    """Whether the ``size`` likeliest tokens may not be enough to draw from."""
    settings = sampler_settings(params, 0)
    if params.logprobs is not None or params.grammar is not None or settings.changes_logits:
        return True
    return not settings.is_greedy and not 0 < settings.top_k <= size


class Shortlisting:
    """The switch of one engine; does nothing for a backend that has none."""

    def __init__(self, shortlist: Shortlist | None) -> None:
        self._shortlist = shortlist
        self._quiet_s = QUIET_S
        self._needed_at = 0.0
        """Seconds on the engine's clock at which somebody needed whole logits."""
        if shortlist is not None:
            self._quiet_s = max(QUIET_S, 2 * shortlist.switch_s / _SWITCH_SHARE)

    def update(self, running: Iterable[Sequence], now: float) -> None:
        """Switch if it is time; whoever runs in the next step is among ``running``."""
        shortlist = self._shortlist
        if shortlist is None:
            return
        size = shortlist.size
        if any(needs_whole_logits(one.request.sampling, size) for one in running):
            self._needed_at = now
            shortlist.switch(on=False)
        elif not shortlist.is_on and now - self._needed_at >= self._quiet_s:
            shortlist.switch(on=True)
