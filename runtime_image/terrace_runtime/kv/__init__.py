"""The tiers below the device: KV blocks by content, in host memory and on disk.

Owns: block keys, the cut between a sequence's state and its blocks, the host tier, and the store
that the engine asks. Does not own: which cells the device holds (``engine.prefix``) or any call
into llama.cpp (``backend``). Next: ``store.py`` is what the engine calls, ``disk/`` the disk tier.
"""
