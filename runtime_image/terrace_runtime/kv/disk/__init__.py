"""The disk tier: an append-only, checksummed log of KV blocks on the pod's own volume.

Owns: everything between ``DiskTier`` and the files. It is a cache: what is torn, corrupt, foreign
or gone is skipped and counted, and a disk that fails stops spilling, never serving. Imports the
standard library and numpy alone. Next: ``tier.py`` is the port.
"""

from terrace_runtime.kv.disk.stats import DiskStats
from terrace_runtime.kv.disk.tier import DiskTier

__all__ = ["DiskStats", "DiskTier"]
