"""Changing the layout of the KV cells while requests are open (``kvLayout: Auto``).

Owns: when to ask which layout suits (``layout.py``), and having cells of the other one. Does not
own: who runs, and setting them aside meanwhile (``core.py``): all cells go to the host tier, and
come back from there into the new ones. On the engine's thread, between two steps.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from terrace_runtime.backend import BackendError
from terrace_runtime.engine.layout import demand_of, suits_unified

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Sequence as Seq

    from terrace_runtime.backend import Backend
    from terrace_runtime.contract import CacheReport, RuntimeConfig
    from terrace_runtime.engine.prefix import PrefixCache
    from terrace_runtime.engine.sequence import Sequence

_LOG = logging.getLogger(__name__)
_REST = 50
"""A change that took so long is the last one for so many times as long: 2 % of the time."""


class Relayout:
    """Asked before every step; looks again only when requests came or ended."""

    def __init__(
        self,
        backend: Backend,
        config: RuntimeConfig,
        prefix: PrefixCache,
        clock: Callable[[], float],
    ) -> None:
        """``backend`` is loaded; ``clock`` gives seconds."""
        self._backend = backend
        self._kv = config.kv
        self._prefix = prefix
        self._clock = clock
        # A device's sampler chains are tied to its context; models without blocks share nothing.
        can_move = prefix.tiers.store is not None and backend.shortlist is None
        self._is_enabled = config.kv_auto and can_move
        self._changes = 0
        self._seen = -1
        self._rests_until = 0.0
        self._wants_unified = False

    def is_due(self, news: int, sequences: Iterable[Sequence], now: float) -> bool:
        """Whether ``sequences``, those that run or will at once, suit the other layout.

        ``news`` is another number whenever these may be others.
        """
        if not self._is_enabled or now < self._rests_until:
            return False
        if news != self._seen:
            self._seen = news
            demand = demand_of(sequences, self._kv.block_tokens)
            self._wants_unified = suits_unified(demand, is_unified=self._backend.is_unified)
        return self._wants_unified != self._backend.is_unified

    def is_ready(self, running: Seq[Sequence]) -> bool:
        """Nothing is on its way, and what ``running`` hold fits the host tier well."""
        if self._prefix.restores or not self._prefix.tiers.can_save:
            return False
        held = sum(one.num_computed for one in running) * self._prefix.tiers.block_bytes
        return 2 * held <= self._kv.host_bytes * self._kv.block_tokens

    def change(self) -> None:
        """Save what lies in free slots, and have empty cells of the other layout.

        Nobody runs. Raises BackendError when there are no cells afterwards.
        """
        started = self._clock()
        unified = not self._backend.is_unified
        self._prefix.residents.drop_all()
        try:
            self._backend.reopen(unified=unified)
        except BackendError as error:
            _LOG.warning("the layout of the KV cells stays as it is: %s", error)
            self._is_enabled = False
            self._backend.reopen(unified=not unified)
        else:
            self._changes += 1
        self._prefix.tiers.relayout(self._backend)
        now = self._clock()
        self._rests_until = now + _REST * (now - started)
        _LOG.info(
            "KV cells are %s from now on; the change took %.0f ms",
            "unified" if self._backend.is_unified else "split",
            (now - started) * 1e3,
        )

    def told(self, cache: CacheReport) -> CacheReport:
        """``cache`` with the layout of now."""
        layout = "unified" if self._backend.is_unified else "split"
        return cache.model_copy(update={"layout": layout, "layout_changes": self._changes})
