"""Limits that a child for strangers' work sets on itself, before it looks at any of it.

Owns: resource limits, memory and processor time. Does not own: the wall clock, which only the
parent can hold (``killable.py``). Next: ``template_child.py`` and ``image_child.py``.
"""

from __future__ import annotations

import resource


def limit(kind: int, value: int) -> None:
    """Lower one of the process's limits for good, as far as it is not lower already."""
    _, hard = resource.getrlimit(kind)
    most = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (most, most))


def grant_time(seconds: int) -> None:
    """So much more processor time from now on, so that an orphan in a loop dies by itself."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(usage.ru_utime + usage.ru_stime) + seconds
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
