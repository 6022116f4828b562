"""Names of KV blocks: a chain of hashes over the tokens and over all that shapes their cells.

Owns: what makes two blocks the same block. Does not own: where they lie (``store.py``). Pure.
Next: the engine asks ``KvStore`` for the keys of a prompt.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY_BYTES = 32
_FORMAT = "terrace-kv-1"
"""Changed when the bytes of a block change their meaning."""
_TOKEN_BYTES = 4


def root_key(
    model_digest: str,
    kv_types: tuple[str, str],
    build: str,
    block_tokens: int,
    *,
    adapter: str = "",
    salt: str = "",
) -> bytes:
    """Key of the empty prefix, 32 bytes: the parent of every first block.

    ``build`` names llama.cpp and each of its settings that changes a cell's bytes (rope, attention
    rotation); ``adapter`` is name, digest and scale; ``salt`` the tenant where no block may cross.
    """
    hasher = sha256()
    for part in (_FORMAT, model_digest, *kv_types, build, str(block_tokens), adapter, salt):
        data = part.encode("utf-8", "surrogatepass")
        # The length before each part keeps ("ab", "c") and ("a", "bc") apart.
        hasher.update(struct.pack("<Q", len(data)))
        hasher.update(data)
    return hasher.digest()


def short_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Key of a block that ends early, with these ``tokens`` after ``parent``."""
    return sha256(parent + np.asarray(tokens, "<i4").tobytes()).digest()


def block_keys(
    root: bytes, tokens: Sequence[int], block_tokens: int, known: Sequence[bytes] = ()
) -> list[bytes]:
    """Keys of all full blocks of ``tokens``: each is sha256(parent key + tokens as int32).

    ``known`` are the keys of the first blocks, from an earlier call; they are not computed again.
    """
    num_blocks = len(tokens) // block_tokens
    keys = list(known[:num_blocks])
    first = len(keys) * block_tokens
    data = np.asarray(tokens[first : num_blocks * block_tokens], "<i4").tobytes()
    parent = keys[-1] if keys else root
    size = block_tokens * _TOKEN_BYTES
    for at in range(0, len(data), size):
        parent = sha256(parent + data[at : at + size]).digest()
        keys.append(parent)
    return keys
