"""How long OpenMP's threads spin at a barrier before they sleep.

Owns: one environment variable. Does not own: how many threads there are (``cpu.py``). It must be
set before libgomp is loaded, therefore ``llama.py`` calls this before it imports llama_cpp.
"""

from __future__ import annotations

import os

SPINS = "1000"
"""Longer than the gaps of a graph, so that a quiet machine loses nothing.

libgomp's own default is 300,000. When another process holds a core, a step's time is proportional
to this number: 9 ms at 1,000 against 148 ms at 20,000 (ADR 0003).
"""


def limit_spinning() -> None:
    """Set GOMP_SPINCOUNT unless the user chose a value or a wait policy."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
