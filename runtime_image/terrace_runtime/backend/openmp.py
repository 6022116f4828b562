"""How long OpenMP's threads spin at a barrier before they sleep.

Owns: one environment variable. Does not own: how many threads there are (``cpu.py``). It must be
set before libgomp is loaded, therefore ``llama.py`` calls this before it imports llama_cpp.
"""

from __future__ import annotations

import os

SPINS = "1000"
"""A few microseconds: longer than the graph's own gaps, shorter than losing the core to another.

libgomp's own default is 300,000. Each barrier of a graph then burns a whole time slice whenever
another process holds a core: a step of 16 sequences of the demo model took 95 ms in place of 3 ms
(ADR 0003). Not spinning at all makes a quiet machine 2 to 3 times slower.
"""


def limit_spinning() -> None:
    """Set GOMP_SPINCOUNT unless the user chose a value or a wait policy."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
