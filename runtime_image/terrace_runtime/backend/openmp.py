"""How long OpenMP's threads spin at a barrier before they sleep.

Owns: one environment variable. Does not own: how many threads there are (``cpu.py``). It must be
set before libgomp is loaded, therefore ``llama.py`` calls this before it imports llama_cpp.
"""

from __future__ import annotations

import os

SPINS = "3000"
"""As long as the gap between two steps, so that on a quiet machine the threads stay awake.

libgomp's own default is 300,000. When another process holds a core, a step's time is proportional
to this number: 9 ms at 1,000, 24 ms at 3,000, 148 ms at 20,000 (ADR 0003). With 1,000 the threads
slept in every gap, and one stream of a 16M model lost 8 % to waking them.
"""


def limit_spinning() -> None:
    """Set GOMP_SPINCOUNT unless the user chose a value or a wait policy."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
