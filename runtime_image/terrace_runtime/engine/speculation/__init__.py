"""Guessing ahead: tokens that a step verifies together with the one it computes anyway.

Owns: the Speculator, which fills ``sequence.draft`` before a step and learns from what came of it.
Does not own: verification (``core.py``: a guess is accepted iff the sequence's own sampler picks it
at that row, so the output is the same as without) or KV cells. Next: ``controller.py`` decides
whether guesses pay, ``sources.py`` makes them.
"""

from terrace_runtime.engine.speculation.speculator import Speculator, speculator

__all__ = ["Speculator", "speculator"]
