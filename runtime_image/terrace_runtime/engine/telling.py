"""When the texts of a step leave the engine: at once, or a few steps together.

Owns: texts held back while everybody decodes. Does not own: how they are made (``harvest.py``,
``detokenizer.py``) or the requests' ends (``core.py``).

Each text that leaves is a frame, an event, a write to a socket and a wake-up of its reader, all on
the cores that compute the next token, and nobody reads fifty pieces a second. So while steps do
nothing but decode, texts leave that often at most, all of them in one frame. First ones, last ones
and those before a step that takes longer leave at once. Next: ``runner.py`` sends them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from terrace_runtime.engine.harvest import Gain
    from terrace_runtime.engine.request import FinishReason, RequestOutput
    from terrace_runtime.engine.sequence import Sequence


class Telling:
    """Asked after every step."""

    def __init__(self, interval_s: float) -> None:
        """``interval_s``: seconds for which a text may be held back; 0: none ever is."""
        self._interval_s = interval_s
        self._told_at = 0.0
        self._untold: dict[str, Sequence] = {}

    @property
    def has_untold(self) -> bool:
        """Texts wait for the next step."""
        return bool(self._untold)

    def forget(self, sequence: Sequence) -> None:
        """It ended: its last output has all its text."""
        self._untold.pop(sequence.id, None)

    def tell(
        self,
        gains: Iterable[Gain],
        now: float,
        end: Callable[[Sequence, FinishReason, str], RequestOutput],
        *,
        is_steady: bool,
    ) -> list[RequestOutput]:
        """The outputs that leave now; ``end`` makes the last one of a request.

        ``is_steady``: everybody that is open decoded in this step, and will in the next.
        """
        is_held = is_steady and now - self._told_at < self._interval_s
        outputs = []
        for sequence, _, _, finish in gains:
            if finish:
                outputs.append(end(sequence, finish, sequence.error))
            elif not sequence.started:
                sequence.first_token_at = now
                outputs.append(sequence.output())
            else:
                self._untold[sequence.id] = sequence
        if not is_held:
            self._told_at = now
            outputs += [sequence.output() for sequence in self._untold.values()]
            self._untold.clear()
        return outputs
