"""The loop body of a model that reads a prompt with an encoder and answers with a decoder.

Owns: that a sequence's prompt is encoded when it gets the one slot, again after it was parked. Does
not own: anything else of a step (``core.py``). llama.cpp keeps one encoder output per context, so
one sequence runs at a time. Next: ``core.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from terrace_runtime.engine.core import EngineCore

if TYPE_CHECKING:
    from terrace_runtime.engine.sequence import Sequence


class EncoderDecoderCore(EngineCore):
    """To be made with a configuration whose ``parallel`` is 1."""

    @override
    def _start(self, sequence: Sequence, slot: int, now: float) -> None:
        self._backend.encode(sequence.encoded)
        super()._start(sequence, slot, now)
